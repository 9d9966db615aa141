"""The main job, end to end, as an API client would do it. Called by scripts/demo.

Makes an on-premises database, starts the service, and drives it through its HTTP API from set-up to completion, with a change
of the source between two runs (behaviour.md §3-4). Exit code 0 only if every table is proven equal to its source.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="The main job of skylift, end to end, through its HTTP API.")
    parser.add_argument("--rows", type=int, default=200_000, help="G/L entries of the first company (default 200000)")
    parser.add_argument("--companies", type=int, default=3, help="companies (default 3)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with source, target and store, and say where it is")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="skylift-demo-"))
    try:
        return demo(folder, options.rows, options.companies)
    finally:
        if options.keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)


def demo(folder: Path, rows: int, companies: int) -> int:
    source = folder / "bc.db"
    step("making the on-premises database")
    skylift(folder, "sample", str(source), "--companies", str(companies), "--rows", str(rows))
    with service(folder) as api:
        step("set-up: connecting the source, choosing and creating companies")
        setup = api.post("setupCloudMigration", {"productId": "DynamicsBCLast", "sqlServerType": "AzureSQL",
                                                 "sqlConnectionString": f"sqlite:///{source}"})
        api.act("setupCloudMigration", setup["id"], "completeSetup")
        for company in api.get("cloudMigrationCompanies"):
            api.patch(f"cloudMigrationCompanies({company['id']})", {"replicate": True})
        api.act("cloudMigrationCompanies", company["id"], "createCompaniesMarkedForReplication")
        until(lambda: all(row["created"] for row in api.get("cloudMigrationCompanies")))

        first = replicate(api, "first run")
        copied = skylift(folder, "status")["tables"]
        step("working in the source: inserting, updating and deleting rows")
        changed = skylift(folder, "sample", str(source), "--change", str(max(90, rows // 500)))
        second = replicate(api, "second run")
        moved = skylift(folder, "status")["tables"]
        step("reading source and target once more and comparing every row")
        verified = skylift(folder, "verify", may_fail=True)["tables"]
        if second == "Upgrade Pending":
            step("upgrading the data, completing the migration")
            api.act("cloudMigrationStatus", api.newest()["id"], "runDataUpgrade")
            upgraded = until(lambda: (row := api.newest())["status"] not in ("Upgrade Pending", "Upgrade in Progress") and row)["status"]
        else:
            upgraded = second
        if upgraded == "Completed":
            api.act("cloudMigrationStatus", api.newest()["id"], "completeCloudMigration")
    show_companies(copied, verified)
    show_moves(moved, changed)
    unequal = [table for table in verified if not table["equal"]]
    failed = [table for table in copied + moved if table["status"] != "Successful"]
    for table in unequal + failed:
        console.print(f"NOT VERIFIED: {table}", style="red")
    complete = (first, second, upgraded) == ("Upgrade Pending", "Upgrade Pending", "Completed")
    proven = complete and bool(verified) and not unequal and not failed and len(verified) == len(copied) == len(moved)
    console.print(f"{len(verified)} tables, {sum(t['source_rows'] for t in verified):,} rows: "
                  + ("every one verified, migration completed" if proven else f"NOT proven ({first}, {second}, {upgraded})"))
    return 0 if proven else 1


class Api:
    """The Cloud Migration API in the context of the environment's own company."""

    def __init__(self, base_url: str, token: str) -> None:
        self.http = httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=120)
        [company, *_] = self.get("companies", within="")
        self.company = f"companies({company['id']})/"

    def get(self, path: str, within: str | None = None) -> list[dict[str, Any]]:
        return self._send("GET", (self.company if within is None else within) + path)["value"]

    def newest(self) -> dict[str, Any]:
        return self.get("cloudMigrationStatus?$orderby=startTime desc&$top=1")[0]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._send("POST", self.company + path, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._send("PATCH", self.company + path, json=body, headers={"If-Match": "*"})

    def act(self, entity_set: str, key: str, action: str) -> None:
        self._send("POST", f"{self.company}{entity_set}({key})/Microsoft.NAV.{action}")

    def _send(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.request(method, path, **body)
        if answer.is_error:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else {}


def replicate(api: Api, name: str) -> str:
    """Start a run and follow it to its end; its last status."""
    api.act("cloudMigrationStatus", api.newest()["id"], "runReplication")
    run = api.newest()
    details = f"cloudMigrationStatusDetails?$filter=runId eq '{run['runId']}'&$select=status,recordsCopied,totalRecords"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rows]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, rows="")
        started = time.monotonic()
        while True:
            api.act("cloudMigrationStatus", run["id"], "refreshStatus")
            status = api.newest()["status"]
            tables = api.get(details)
            ended = sum(table["status"] in ("Successful", "Failed", "Warning") for table in tables)
            moved = sum(table["recordsCopied"] for table in tables)
            rate = moved / (time.monotonic() - started)
            bar.update(task, total=len(tables), completed=ended, rows=f"tables, {moved:,} rows, {rate:,.0f} rows/s")
            if status != "In Progress":
                return status
            time.sleep(0.3)


@contextmanager
def service(folder: Path):
    """`skylift serve` on a free port, for as long as the block lasts; yields the API."""
    token = subprocess.run([*SKYLIFT, "token", "create", "demo", "--role", "administrator", "--home", folder / "home"],
                           check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step("starting the service")
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen([*SKYLIFT, "serve", "--port", str(port), "--home", folder / "home"], stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/health") or server.poll() is not None)
        if server.poll() is not None:
            raise SystemExit((folder / "serve.log").read_text())
        yield Api(f"http://127.0.0.1:{port}/v2.0/production/api/microsoft/cloudMigration/v1.0/", token)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


SKYLIFT = (sys.executable, "-m", "skylift")


def skylift(folder: Path, *arguments: str, may_fail: bool = False) -> Any:
    """Call the command with --json; its document."""
    called = subprocess.run([*SKYLIFT, *arguments, "--home", folder / "home", "--json"], capture_output=True, text=True, check=False)
    if called.returncode and not (may_fail and called.returncode == 1):
        raise SystemExit(f"skylift {' '.join(arguments)} failed with exit code {called.returncode}: {called.stderr}")
    return json.loads(called.stdout)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def until(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What `look` returns once that is true."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > end:
            raise SystemExit(f"nothing happened for {seconds:.0f} s")
        time.sleep(0.2)
    return seen


def step(text: str) -> None:
    console.print(f"[bold]{text}[/bold]")


def show_companies(copied: list[dict], verified: list[dict]) -> None:
    table = Table("company", box=None, pad_edge=False)
    for name in ("tables", "rows", "verified", "seconds", "rows/s"):
        table.add_column(name, justify="right")
    for company in sorted({row["company_name"] for row in copied}):
        mine = [row for row in copied if row["company_name"] == company]
        proofs = [row for row in verified if row["company"] == company]
        rows = sum(row["records_copied"] for row in mine)
        seconds = (max(moment(row["ended_at"]) for row in mine) - min(moment(row["started_at"]) for row in mine)).total_seconds()
        equal = sum(row["equal"] for row in proofs)
        table.add_row(company or "(all companies)", str(len(mine)), f"{rows:,}", f"{equal} of {len(proofs)}", f"{seconds:.1f}",
                      f"{rows / max(seconds, 0.001):,.0f}")
    console.print(table)


def show_moves(moved: list[dict], changed: list[dict]) -> None:
    touched = [row for row in moved if row["mode"] != "unchanged"]
    counts = {name: sum(row[name] for row in touched) for name in ("inserted", "updated", "deleted")}
    made = {name: sum(row[name] for row in changed) for name in counts}
    console.print(f"changes made in the source: {json.dumps(made)}")
    console.print(f"second run moved:           {json.dumps(counts)} in {len(touched)} of {len(moved)} tables")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


if __name__ == "__main__":
    sys.exit(main())
