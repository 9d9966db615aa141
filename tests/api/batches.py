"""Batches for tests: a service to send them to, the requests in them, what is answered and what is stored."""

import sqlite3
from contextlib import closing, contextmanager

from skylift.store.tables import apps
from tests.api.conftest import number, open_client
from tests.migration.lab import Lab

MAPPINGS = "tableMappings"


@contextmanager
def ready_client(folder, store_url):
    """An administrator's, ready to replicate one company, with an app whose tables can be mapped."""
    with closing(sqlite3.connect(folder / "shop.db")) as database, database:
        database.execute("create table item (id integer primary key)")
    client = open_client(folder / "home", store=store_url)
    Lab(client.http.service, folder / "shop.db").prepare(product_id="Custom")
    with client.http.service.store.write() as connection:
        connection.execute(apps.insert().values(id=number(7), name="Mine", publisher="Me", version="1.0"))
    yield client
    client.http.service.store.close()


def get(url, id=None, **more):
    return {"id": id, "method": "GET", "url": url} | more


def post(n, id=None, **more):
    """Makes mapping number `n`."""
    return {"id": id, "method": "POST", "url": MAPPINGS, "body": mapping(n)} | more


def mapping(n):
    return {"appId": str(number(7)), "tableId": 50_000 + n, "tableName": f"T{n}", "sourceTableName": f"[S{n}]"}


WRONG = {"method": "GET", "url": "nothing"}


def batch(client, *requests, path="$batch", **headers):
    answer = client.ask("POST", path, {"requests": list(requests)}, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["responses"]


def statuses(client, *requests, **headers):
    return [item["status"] for item in batch(client, *requests, **headers)]


def refused(client, *requests, **headers):
    return client.error("$batch", "POST", body={"requests": list(requests)}, **headers)


def stored(client):
    return sorted(row["tableName"] for row in client.rows(MAPPINGS))
