"""Spans and metrics for an OpenTelemetry receiver, sent over HTTP by the SDK's own threads.

The trace of a run has the run's id: whoever takes the run up from a coordinator that died goes on with the same trace. Spans are made
when they have ended, with the times at which they began and ended, so none is open while rows move.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from skylift.errors import SetupError, redact
from skylift.settings import Settings, otlp_headers
from skylift.telemetry import Signal, join_all, version
from skylift.telemetry.metrics import BUCKETS, COUNTER, REQUESTS, SERVED, STORED, Metric, Sample

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
except ImportError:
    raise SetupError("the setting 'otlp_endpoint' needs packages that are not installed", code="Telemetry",
                     hint="pip install 'skylift[telemetry]'") from None

TIMEOUT_S = 10.0                  # of one export, tries included
MOST_SPANS = 4096                 # that wait to be sent; then the oldest are dropped
SPANS_S = 1.0                     # between two sendings
SAME_S = 0.5                      # within which figures are not read again
_log = logging.getLogger("skylift.telemetry")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Told:
    """Says once when a receiver does not take what it is sent, and again only after it has: the SDK would say so at every try."""

    def __init__(self, settings: Settings) -> None:
        self._url = redact(settings.otlp_endpoint)
        self._told = False
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def __call__(self, export: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any, **options: Any) -> Any:
            result = export(*arguments, **options)
            failed = result.name != "SUCCESS"
            if failed and not self._told:
                _log.warning("%s does not take what telemetry sends it; nothing waits for it", self._url)
            self._told = failed
            return result

        return told


class Otlp:
    """`read` gives the figures that this process answers for at the moment."""

    def __init__(self, settings: Settings, read: Callable[[], Iterable[Sample]]) -> None:
        base, headers = settings.otlp_endpoint.rstrip("/"), otlp_headers(settings)
        resource = Resource.create({"service.name": "skylift", "service.version": version(),
                                    "deployment.environment.name": settings.environment_name})
        self._ids = _Ids()
        spans = OTLPSpanExporter(f"{base}/v1/traces", headers=headers, timeout=TIMEOUT_S)
        figures = OTLPMetricExporter(f"{base}/v1/metrics", headers=headers, timeout=TIMEOUT_S)
        told = _Told(settings)
        spans.export, figures.export = told(spans.export), told(figures.export)       # type: ignore[method-assign]
        self._spans = BatchSpanProcessor(spans, max_queue_size=MOST_SPANS, schedule_delay_millis=SPANS_S * 1000)
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        tracers.add_span_processor(self._spans)
        self._tracer = tracers.get_tracer("skylift", version())
        self._reader = PeriodicExportingMetricReader(figures, settings.otlp_interval_s * 1000)
        meter = MeterProvider([self._reader], resource, shutdown_on_exit=False).get_meter("skylift", version())
        read = _once(read)
        for metric in (*STORED, *SERVED):
            make = meter.create_observable_counter if metric.kind == COUNTER else meter.create_observable_gauge
            make(metric.name, [_observed(metric, read)], metric.unit, metric.help)
        self._requests = meter.create_histogram(REQUESTS.name, REQUESTS.unit, REQUESTS.help,
                                                explicit_bucket_boundaries_advisory=BUCKETS)

    def emit(self, signals: Iterable[Signal]) -> None:
        for signal in signals:
            self._emit(signal)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.record(seconds, {"http.route": route, "http.request.method": method, "http.response.status_code": status})

    def close(self, seconds: float) -> None:
        join_all([threading.Thread(target=end, daemon=True) for end in (self._reader.shutdown, self._spans.shutdown)], seconds)

    def _emit(self, signal: Signal) -> None:
        attributes: dict[str, Any] = dict(signal.dimensions)
        attributes |= {name: value for name, value in (
            ("skylift.event", signal.name), ("skylift.event_ids", signal.ids), ("skylift.actor", signal.actor),
            ("skylift.run_id", str(signal.trace or "")), ("skylift.from", signal.before), ("skylift.to", signal.after)) if value}
        parent = None
        if signal.trace and signal.parent:
            parent = trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(
                signal.trace.int, _span_id(signal.parent), is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))))
        with self._ids.given(signal.trace, signal.span):
            span = self._tracer.start_span(signal.name, parent, attributes=attributes, start_time=_ns(signal.began or signal.at))
        if signal.failed:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        span.end(_ns(signal.at))


class _Ids(RandomIdGenerator):
    """Random ids, but for those of spans that others refer to."""

    def __init__(self) -> None:
        self._given = threading.local()

    def given(self, trace_id: UUID | None, span: UUID | None) -> _Ids:
        self._given.trace, self._given.span = trace_id, span
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._given.trace = self._given.span = None

    def generate_trace_id(self) -> int:
        given = getattr(self._given, "trace", None)
        return given.int if given else super().generate_trace_id()

    def generate_span_id(self) -> int:
        given = getattr(self._given, "span", None)
        return _span_id(given) if given else super().generate_span_id()


def _once(read: Callable[[], Iterable[Sample]]) -> Callable[[], Iterable[Sample]]:
    """Every metric is asked for by itself, all within moments: they are read once."""
    known: tuple[float, list[Sample]] = (-math.inf, [])

    def read_once() -> list[Sample]:
        nonlocal known
        if time.monotonic() - known[0] > SAME_S:
            known = time.monotonic(), [*read()]
        return known[1]

    return read_once


def _observed(metric: Metric, read: Callable[[], Iterable[Sample]]) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        return (Observation(sample.value, dict(sample.labels)) for sample in read() if sample.metric == metric.name)

    return observe


def _span_id(id: UUID) -> int:
    return id.int & (1 << 64) - 1


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000
