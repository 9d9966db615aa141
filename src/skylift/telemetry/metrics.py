"""The figures there are, declared once: /metrics, OpenTelemetry and docs/telemetry.md follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is OpenTelemetry's; Prometheus' follows from it by the rules that both have agreed on."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""                # of UCUM: s, By

    @property
    def family(self) -> str:
        """Its name at /metrics, without the `_total` of a counter."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        name = self.name.replace(".", "_")
        return name if name.endswith(unit) else name + unit

    @property
    def prometheus(self) -> str:
        return self.family + ("_total" if self.kind == COUNTER else "")


class Sample(NamedTuple):
    metric: str                   # its name in METRICS
    value: float
    labels: Mapping[str, str]


REQUESTS = Metric("http.server.request.duration", HISTOGRAM, "Requests of the API by route template, from the first byte to the answer.",
                  ("http_route", "http_request_method", "http_response_status_code"), "s")
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

# Of the store: told by whichever process works as coordinator, and at /metrics.
STORED = (
    Metric("skylift.state", GAUGE, "1 for the state that the migration is in.", ("state",)),
    Metric("skylift.runs", GAUGE, "Runs by type and status.", ("type", "status")),
    Metric("skylift.tables", GAUGE, "Tables of the newest run by status.", ("status",)),
    Metric("skylift.rows.copied", COUNTER, "Rows that arrived, by how their table was copied.", ("mode",)),
    Metric("skylift.bytes.copied", COUNTER, "Bytes (as Arrow holds them) that arrived, by how their table was copied.", ("mode",), "By"),
    Metric("skylift.run.duration", GAUGE, "How long the newest run took that has ended and copied something.", ("type",), "s"),
    Metric("skylift.lag", GAUGE, "Time since the newest run of everything began that ended without failed tables: "
                                 "what the source held then has arrived.", (), "s"),
    Metric("skylift.coordinators", GAUGE, "1 while a coordinator holds the lease, else nothing moves on."),
    Metric("skylift.webhook.subscriptions", GAUGE, "Subscriptions to webhooks."),
    Metric("skylift.webhook.waiting", GAUGE, "How long the receiver has been waiting that has waited longest.", (), "s"),
    Metric("skylift.webhook.deliveries", COUNTER, "Calls of receivers by outcome, as far as this process has seen them.", ("outcome",)),
)
# Of a process that serves the API.
SERVED = (
    Metric("skylift.api.requests.running", GAUGE, "Requests that are worked on."),
    Metric("skylift.api.requests.waiting", GAUGE, "Requests that wait for their turn."),
    Metric("skylift.api.limit", GAUGE, "The limits of each user: requests in a window, at once, and waiting.", ("limit",)),
)
METRICS = {metric.name: metric for metric in (*STORED, *SERVED, REQUESTS)}


def grouped(samples: Iterable[Sample]) -> dict[Metric, list[Sample]]:
    """By metric, in the order in which they are declared."""
    found: dict[Metric, list[Sample]] = {metric: [] for metric in METRICS.values()}
    for sample in samples:
        found[METRICS[sample.metric]].append(sample)
    return {metric: those for metric, those in found.items() if those}


def table() -> str:
    """METRICS for docs/telemetry.md."""
    lines = ["| OpenTelemetry | /metrics | kind | labels | |", "|---|---|---|---|---|"]
    lines += [f"| `{m.name}` | `{m.prometheus}` | {m.kind} | {', '.join(m.labels) or '–'} | {m.help} |" for m in METRICS.values()]
    return "\n".join(lines)
