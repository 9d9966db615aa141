"""Spans and metrics as a real receiver gets them: OTLP over HTTP, decoded with the protocol's own definitions."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from skylift import telemetry
from skylift.errors import SetupError
from skylift.migration import Migration
from skylift.migration.coordinator import coordinate
from skylift.model import Run
from skylift.runs import RunStatus, TableStatus
from skylift.settings import Settings
from skylift.store import open_store
from skylift.telemetry.metrics import STORED
from tests.api.conftest import open_client, served
from tests.migration.test_packs import CONTOSO, CRONUS, CUSTOMER
from tests.telemetry.conftest import watched


class OtlpReceiver(ThreadingHTTPServer):
    """Keeps what it is sent. `hang` answers no more, `status` is what it answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans, self.metrics, self.headers, self.resources = [], [], [], []
        self.hang, self.status = threading.Event(), 200
        self.asked = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.set()
        if self.server.hang.is_set():
            time.sleep(60)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.headers.append(dict(self.headers))
        if self.server.status == 200:
            kind, kept = {"/v1/traces": (ExportTraceServiceRequest, self.server.spans),
                          "/v1/metrics": (ExportMetricsServiceRequest, self.server.metrics)}[self.path]
            message = kind.FromString(body)
            parts = message.resource_spans if self.path == "/v1/traces" else message.resource_metrics
            self.server.resources += [attributes(part.resource) for part in parts]
            kept += [item for part in parts for scope in (part.scope_spans if self.path == "/v1/traces" else part.scope_metrics)
                     for item in (scope.spans if self.path == "/v1/traces" else scope.metrics)]
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def attributes(of):
    def value(v):
        kind = v.WhichOneof("value")
        return [value(x) for x in v.array_value.values] if kind == "array_value" else getattr(v, kind)

    return {a.key: value(a.value) for a in of.attributes}


@pytest.fixture
def receiver():
    receiver = OtlpReceiver()
    yield receiver
    receiver.shutdown()
    receiver.server_close()


def test_a_run_is_a_trace_of_its_tables_and_their_parts(tmp_path, sample_file, receiver, monkeypatch):
    monkeypatch.setattr("skylift.engine.copy.CHUNK_BYTES", 20_000)                  # some tables come in chunks
    with watched(tmp_path / "lab", sample_file, telemetry_log="", otlp_endpoint=receiver.url + "/", otlp_headers="api-key=g%20heim") as lab:
        lab.prepare()
        lab.run()
        lab.in_source(f'update "{CRONUS}${CUSTOMER}" set Name = Name || 1', f'alter table "{CONTOSO}${CUSTOMER}" add extra')
        lab.run()
        lab.migration.telemetry.close()
        newest, first = lab.runs[:2]
        rows = {run.run_id: lab.tables(run) for run in (newest, first)}

    assert {header["api-key"] for header in receiver.headers} == {"g heim"}
    assert receiver.resources[0]["service.name"] == "skylift" and receiver.resources[0]["deployment.environment.name"] == "production"
    for run in (newest, first):
        spans = [span for span in receiver.spans if span.trace_id == UUID(run.run_id).bytes]
        [root] = [span for span in spans if not span.parent_span_id]
        told = attributes(root)
        assert (root.name, told["RunType"], told["Tables"]) == ("run.await_upgrade", run.replication_type, len(rows[run.run_id]))
        assert told["RowsCopied"] == sum(row.records_copied for row in rows[run.run_id].values())
        assert root.start_time_unix_nano == ns(run.started_at) and root.start_time_unix_nano < root.end_time_unix_nano
        tables = {(a["CompanyName"], a["TableName"]): (span, a) for span in spans if span.name in ("table.copied", "table.failed")
                  for a in [attributes(span)]}
        assert tables.keys() == rows[run.run_id].keys()
        for key, row in rows[run.run_id].items():
            span, a = tables[key]
            assert span.parent_span_id == root.span_id and (a.get("Mode", ""), a["RowsCopied"], a["BytesCopied"]) == (
                row.mode, row.records_copied, row.size_bytes)
            assert (span.status.code == 2) is (row.status is TableStatus.FAILED)
            parts = [(part.name, attributes(part)["Rows"]) for part in spans if part.parent_span_id == span.span_id]
            assert sum(rows for name, rows in parts if name != "table.finish") == row.records_copied
    steps = {span.name for span in receiver.spans}
    assert steps >= {"table.begin", "table.chunk", "table.finish", "table.pack", "table.changes", "run.run_replication", "company.include"}
    chunks = [attributes(span)["Chunk"] for span in receiver.spans if span.name == "table.chunk"]
    assert len(chunks) > len(set(chunks)) > 1                         # of several tables
    assert attributes(tables_root(receiver, newest))["skylift.event_ids"] == ["AL0000K0I"]
    assert attributes(tables_root(receiver, first))["skylift.event_ids"] == ["AL0000K0H"]


def tables_root(receiver, run):
    return next(span for span in receiver.spans if span.trace_id == UUID(run.run_id).bytes and not span.parent_span_id)


def ns(at):
    return round(at.timestamp() * 1e6) * 1000


def test_a_run_that_another_coordinator_goes_on_with_stays_one_trace(tmp_path, sample_file, receiver):
    with watched(tmp_path / "lab", sample_file, telemetry_log="", otlp_endpoint=receiver.url) as lab:
        lab.prepare()
        asked = lab.migration.run_replication()
        lab.work(stop=lambda: any(row.status is TableStatus.SUCCESSFUL for row in lab.tables(asked).values()))
        assert lab.migration.get(Run, asked.id).status is RunStatus.IN_PROGRESS
        lab.work()
        lab.migration.telemetry.close()
        run = lab.migration.get(Run, asked.id)

    assert run.status is RunStatus.UPGRADE_PENDING
    ours = [span for span in receiver.spans if span.trace_id == UUID(run.run_id).bytes]
    assert [span.name for span in ours if not span.parent_span_id] == ["run.await_upgrade"] and len(ours) > 10


def test_the_coordinator_tells_the_figures_of_the_store_and_the_api_those_of_its_requests(tmp_path, sample_file, receiver):
    with watched(tmp_path / "lab", sample_file, telemetry_log="", otlp_endpoint=receiver.url, otlp_interval_s=0.1) as lab:
        lab.prepare()
        run = lab.run()
        ended = threading.Event()
        thread = threading.Thread(target=coordinate, args=(lab.store, lab.migration.settings, ended.is_set), daemon=True)
        thread.start()
        wait_for(lambda: {metric.name for metric in receiver.metrics} >= {m.name for m in STORED} - {"skylift.webhook.deliveries"})
        ended.set()
        thread.join()
        copied = sum(row.records_copied for row in lab.tables(run).values())
    points = {metric.name: metric for metric in receiver.metrics}
    assert [p.as_int for p in points["skylift.rows.copied"].sum.data_points] == [copied]
    assert points["skylift.rows.copied"].sum.is_monotonic
    assert [(attributes(p), p.as_int) for p in points["skylift.coordinators"].gauge.data_points] == [({}, 1)]
    assert 0 < points["skylift.lag"].gauge.data_points[0].as_double < 600 and points["skylift.lag"].unit == "s"

    client = open_client(tmp_path / "api", otlp_endpoint=receiver.url, otlp_interval_s=0.1)
    client.get("companies")
    wait_for(lambda: any(metric.name == "http.server.request.duration" for metric in receiver.metrics))
    client.http.service.telemetry.close()
    [point] = next(metric for metric in receiver.metrics if metric.name == "http.server.request.duration").histogram.data_points
    assert attributes(point) == {"http.route": "v1.0/companies", "http.request.method": "GET", "http.response.status_code": 200}
    assert point.count == 1 and 0 < point.sum < 10


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("trouble", ["hangs", "refuses", "is away"])
def test_a_run_does_not_wait_for_a_receiver_that(tmp_path, sample_file, receiver, trouble, caplog):
    if trouble == "is away":
        receiver.shutdown()
        receiver.server_close()
    elif trouble == "hangs":
        receiver.hang.set()
    receiver.status = 503
    with watched(tmp_path / "lab", sample_file, telemetry_log="", otlp_endpoint=receiver.url, otlp_interval_s=0.1) as lab:
        lab.prepare()
        if trouble != "is away":
            assert receiver.asked.wait(10)                            # it is being waited for, by others
        with watched(tmp_path / "other", sample_file, telemetry_log="") as other:
            other.prepare()
            quiet, troubled = timed(other.run), timed(lab.run)
        closing = timed(lab.migration.telemetry.close)

    assert lab.runs[0].status is RunStatus.UPGRADE_PENDING and lab.runs[0].tables_failed == 0
    assert troubled < 3 * quiet + 3 and closing < telemetry.CLOSE_S + 2
    wait_for(lambda: caplog.messages)                                 # the sender that was left to itself tells it
    assert caplog.messages == [f"{receiver.url} does not take what telemetry sends it; nothing waits for it"]


def timed(call):
    began = time.monotonic()
    call()
    return time.monotonic() - began


@pytest.mark.parametrize(("name", "value", "message"), [
    ("otlp_endpoint", "localhost:4318", "otlp_endpoint is 'localhost:4318'; a URL with http or https is needed"),
    ("otlp_headers", "Authorization", "otlp_headers is not name=value"),
])
def test_a_setting_that_cannot_be_used_is_told(name, value, message):
    with pytest.raises(SetupError, match=message):
        Settings(**{name: value})


def test_headers_are_not_shown():
    assert "geheim" not in repr(Settings(otlp_headers="api-key=geheim"))


def test_off_is_off(tmp_path):
    """Nothing is imported, measured or told."""
    code = ("import sys; from pathlib import Path; from skylift.app import create_app; from skylift.settings import Settings; "
            "app = create_app(Settings(home=Path(sys.argv[1]))); api = app.router.default; "
            "assert api.observe is None and not api.service.telemetry.on; "
            "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'prometheus_client')])")
    assert subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_served_run_is_told_by_server_and_coordinator_and_both_end_in_time_with_a_receiver_that_hangs(tmp_path, sample_file, receiver):
    shutil.copy(sample_file, tmp_path / "bc.db")
    home, hung = tmp_path / "home", OtlpReceiver()
    token = Migration(open_store(Settings(home=home).store), Settings(home=home)).create_token("robot", "administrator")
    headers, root = {"Authorization": f"Bearer {token}", "If-Match": "*"}, "/api/v1.0"
    more = {"telemetry_log": "events.jsonl", "prometheus": "on", "poll_s": 0.05, "otlp_interval_s": 0.2}

    def patiently(condition):
        wait_for(lambda: condition(figures()), 60)

    def figures():
        text = http.get("/metrics", headers=headers).raise_for_status().text
        return {(s.name, *s.labels.values()): s.value for family in text_string_to_metric_families(text) for s in family.samples}

    with served(home, otlp_endpoint=receiver.url, **more) as (http, process):
        post = {"productId": "DynamicsBCLast", "sqlServerType": "AzureSQL", "sqlConnectionString": f"sqlite:///{tmp_path}/bc.db"}
        setup = http.post(f"{root}/setupCloudMigration", json=post, headers=headers).raise_for_status().json()
        [company, *_] = http.get(f"{root}/cloudMigrationCompanies", headers=headers).json()["value"]
        http.patch(f"{root}/cloudMigrationCompanies({company['id']})", json={"replicate": True}, headers=headers).raise_for_status()
        http.post(f"{root}/setupCloudMigration({setup['id']})/Microsoft.NAV.completeSetup", headers=headers).raise_for_status()
        patiently(lambda found: found.get(("skylift_state", "Ready")))
        [row] = http.get(f"{root}/cloudMigrationStatus", headers=headers).json()["value"]
        http.post(f"{root}/cloudMigrationStatus({row['id']})/Microsoft.NAV.runReplication", headers=headers).raise_for_status()
        patiently(lambda found: found.get(("skylift_state", "UpgradePending")) and found.get(("skylift_coordinators",)))
        wait_for(lambda: any(m.name == "skylift.rows.copied" for m in receiver.metrics), 20)
    lines = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    assert {("AL0000K0J", "robot"), ("AL0000JMN", "robot"), ("AL0000K0H", "coordinator")} <= {(x["eventId"], x.get("actor")) for x in lines}
    assert {attributes(span).get("skylift.actor") for span in receiver.spans} >= {"robot", "coordinator"}
    assert {m.name for m in receiver.metrics} >= {"http.server.request.duration", "skylift.rows.copied", "skylift.api.requests.running"}

    hung.hang.set()
    with served(home, otlp_endpoint=hung.url, **more) as (http, process):
        http.get(f"{root}/companies", headers=headers).raise_for_status()
        assert hung.asked.wait(20)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and time.monotonic() - began < 15
    hung.shutdown()
    hung.server_close()
