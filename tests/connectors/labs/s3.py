"""Lakes in a bucket of their own; what a table consists of is fetched by boto3 and read as files are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import boto3
from deltalake import DeltaTable

from skylift.connectors.lake_names import escape, unescape
from tests import servers
from tests.connectors.labs.parquet import ParquetLab

PREFIX = "some where/ü"


class ParquetS3Lab(ParquetLab):
    examples = 3

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fetched"
        self.endpoint = servers.s3()
        self.bucket = f"lab-{uuid4().hex[:12]}"
        self.client: Any = boto3.client("s3", endpoint_url=self.endpoint, aws_access_key_id="key", aws_secret_access_key="se/cr+et",
                                        region_name="us-east-1")
        self.client.create_bucket(Bucket=self.bucket)
        self.url = f"{self.form}+s3://key:se%2Fcr%2Bet@{self.bucket}/some%20where/ü?endpoint={self.endpoint}&region=us-east-1"

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{PREFIX}/{prefix}")
        return [found["Key"].removeprefix(f"{PREFIX}/") for page in pages for found in page.get("Contents", [])]

    def files(self, name: str, schema: str = "main") -> list[str]:
        folder = f"{escape(schema)}/{escape(name)}/"
        return [self._fetched(key) for key in self.keys(folder) if key.endswith(".parquet") and "_delta_log" not in key]

    def _fetched(self, key: str) -> str:
        local = self.path / key
        if not local.exists():                         # a data file never changes
            local.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(self.bucket, f"{PREFIX}/{key}", str(local))
        return str(local)

    def names(self, schema: str = "main") -> set[str]:
        return {unescape(key.split("/")[1]) for key in self.keys(f"{escape(schema)}/")}


class DeltaS3Lab(ParquetS3Lab):
    form = "delta"

    def table(self, name: str, schema: str = "main") -> DeltaTable:
        return DeltaTable(f"s3://{self.bucket}/some%20where/%C3%BC/{escape(schema)}/{escape(name)}", storage_options={
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "se/cr+et", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": self.endpoint})

    def files(self, name: str, schema: str = "main") -> list[str]:
        names = [unquote(uri).rsplit("/", 1)[1] for uri in self.table(name, schema).file_uris()]
        return [self._fetched(f"{escape(schema)}/{escape(name)}/{file}") for file in names]

    def rows(self, name: str, schema: str = "main") -> Counter:
        return super().rows(name, schema) if self.files(name, schema) else Counter()
