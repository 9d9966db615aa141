"""The files of a lake below a prefix of an S3 bucket, or of what speaks like one; the same methods as lake_store.Folder has.

A whole object appears at once, so nothing needs to be made durable. An entry of the log is made by a conditional write
(`If-None-Match: *`, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html): of two writers one wins.
There is no moving: a file is copied within the store, and then deleted where it was.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import quote as url_quote

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store
from sqlalchemy.engine import URL

from skylift.connectors.lake_store import OWN, all_of, staged
from skylift.errors import SetupError, SkyliftError, TargetFailed

_OPTIONS = {"region", "endpoint"}
_REQUESTS = 16                    # under way at once, of each kind
_RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=60),
                 "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2}}
_TIMEOUTS: Any = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}


class Bucket:
    """One prefix of one bucket."""

    pre_buffer = True                 # column chunks that lie side by side come with one request
    orphan_age_s = 86_400.0           # no lock tells that nobody is about to need a file: only what is older than a day is deleted

    def __init__(self, url: URL) -> None:
        """Raises SetupError if the bucket cannot be listed."""
        if not url.host:
            raise SetupError(f"the {url.drivername} target names no bucket", hint=f"write {url.drivername}://bucket/prefix?region=..")
        if unknown := set(url.query) - _OPTIONS:
            raise SetupError(f"{url.drivername}://{url.host}: unknown option {', '.join(sorted(unknown))}",
                             hint=f"known options: {', '.join(sorted(_OPTIONS))}")
        if bool(url.username) != bool(url.password):
            raise SetupError(f"{url.drivername}://{url.host}: a key needs a secret, and a secret a key",
                             hint="write key:secret@bucket, with / + and % as %2F %2B %25, or neither and set AWS_ACCESS_KEY_ID and "
                                  "AWS_SECRET_ACCESS_KEY")
        self._prefix = (url.database or "").strip("/")
        self.where = f"bucket {url.host}{'/' + self._prefix if self._prefix else ''}"
        given = {"access_key_id": url.username, "secret_access_key": str(url.password or ""), **url.query}
        config: Any = {name: value for name, value in given.items() if value}
        endpoint = str(config.get("endpoint", ""))
        client: Any = {**_TIMEOUTS, "allow_http": endpoint.startswith("http://")}
        try:
            self._store = S3Store(url.host, prefix=self._prefix or None, config=config, client_options=client, retry_config=_RETRIES)
        except (BaseError, ValueError) as error:
            raise SetupError(f"{self.where}: {_first_line(error)}") from None
        self._uri = f"s3://{url.host}/{self._prefix + '/' if self._prefix else ''}"
        self.storage_options = {f"AWS_{name.upper()}": str(value) for name, value in config.items()} | {
            "AWS_ALLOW_HTTP": str(client["allow_http"]).lower(), "connect_timeout": "5s", "timeout": "60s"}
        self._tables, self._files = (ThreadPoolExecutor(_REQUESTS, thread_name_prefix=name) for name in ("s3-tables", "s3-files"))
        try:
            self.files(OWN)
        except TargetFailed as error:
            raise SetupError(error.message, hint=error.hint) from None

    def close(self) -> None:
        self._tables.shutdown()
        self._files.shutdown()

    def uri(self, folder: str) -> str:
        return self._uri + url_quote(folder)

    # -------------------------------------------------------------- small objects

    def get(self, path: str) -> bytes:
        with self.told():
            return bytes(obstore.get(self._store, path).bytes())

    def create(self, path: str, data: bytes) -> bool:
        with self.told():
            try:
                obstore.put(self._store, path, data, mode="create")
                return True
            except AlreadyExistsError:
                return False

    def settle(self) -> None:
        return

    # -------------------------------------------------------------- data files

    @contextmanager
    def writer(self, path: str) -> Iterator[Any]:
        """What is written lies in a file of this machine until it is complete: a file that is given up leaves no half upload behind."""
        with NamedTemporaryFile(prefix="skylift-") as file:
            with pa.OSFile(file.name, "wb") as sink:
                yield sink
            with self.told():
                obstore.put(self._store, path, Path(file.name), mode="overwrite", max_concurrency=4)

    def reader(self, path: str, size_bytes: int) -> Any:
        return pa.PythonFile(_Object(self._store, path, size_bytes), mode="r")

    def sync(self, paths: Iterable[str]) -> None:
        return

    def files(self, prefix: str) -> dict[str, float]:
        with self.told():
            return {found["path"]: found["last_modified"].timestamp()
                    for page in obstore.list(self._store, prefix, chunk_size=1000) for found in page}

    def delete(self, paths: Iterable[str]) -> None:
        with self.told():
            if gone := list(paths):
                obstore.delete(self._store, gone)

    def delete_folder(self, folder: str) -> None:
        self.delete(self.files(folder))

    def move(self, moves: Mapping[str, str]) -> None:
        with self.told():
            moved = list(self._files.map(self._copied, moves.items()))
        self.delete(lies for lies, copied in zip(moves, moved, strict=True) if copied)

    def _copied(self, move: tuple[str, str]) -> bool:
        try:
            obstore.copy(self._store, *move)
            return True
        except FileNotFoundError:
            return False
        except BaseError as error:
            if "NoSuchKey" in str(error):
                return False
            raise

    def show(self, folder: str, files: Collection[str], ours: Callable[[str], Any]) -> None:
        """First come the files that `folder` lacks, then those go that it should not have."""
        here = {path.rsplit("/", 1)[1] for path in self.files(folder)}
        self.move({staged(name): f"{folder}/{name}" for name in files if name not in here})
        self.delete(f"{folder}/{name}" for name in here.difference(files) if ours(name))

    def each(self, act: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Many at once: a request waits longer than it works."""
        all_of([self._tables.submit(act, item).result for item in items])

    # -------------------------------------------------------------- errors

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except SkyliftError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._explained(error) from None
            raise
        except (BaseError, OSError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> TargetFailed:
        """By the store's own code (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), or what the network says."""
        text = str(error)
        code = _first(re.findall(r"<Code>(\w+)</Code>", text)) or ""
        message = _first(re.findall(r"<Message>([^<]*)</Message>", text)) or _first_line(error).rsplit(" - ", 1)[-1]
        hint = "check endpoint and network, then run again: what has arrived stays"
        if code == "NoSuchBucket":
            hint = "create the bucket first, and check its region"
        elif "169.254." in text:                       # who gives none is taken for a machine with a role, which is asked there
            message, hint = "no credentials were found", "write key:secret@bucket, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken") or " 403 " in text:
            hint = "check key and secret, and that they may list, read, write and delete below the prefix"
        return TargetFailed(f"{self.where}: {code + ': ' if code else ''}{message}", hint=hint)


class _Object(io.RawIOBase):
    """An object as a file that can be read anywhere; each read is a request."""

    def __init__(self, store: S3Store, path: str, size_bytes: int) -> None:
        self._store, self._path, self._size = store, path, size_bytes
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0 if whence == io.SEEK_SET else self._at if whence == io.SEEK_CUR else self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        length = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        if length <= 0:
            return b""
        found = obstore.get_range(self._store, self._path, start=self._at, length=length)
        self._at += length
        return found.to_bytes()


def _first(found: list[str]) -> str | None:
    return found[0].strip() if found else None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
