"""What /metrics answers, written by prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from skylift.errors import SetupError
from skylift.telemetry.metrics import BUCKETS, COUNTER, REQUESTS, Sample, grouped

try:
    from prometheus_client import CollectorRegistry, Histogram, exposition
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError:
    raise SetupError("the setting 'prometheus' needs a package that is not installed", code="Telemetry",
                     hint="pip install 'skylift[telemetry]'") from None


class Exposition:
    def __init__(self) -> None:
        self._requests = Histogram(REQUESTS.family, REQUESTS.help, REQUESTS.labels, buckets=BUCKETS, registry=None)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).observe(seconds)

    def render(self, accept: str, samples: Iterable[Sample]) -> tuple[bytes, str]:
        """Body and content type, in the form that `accept` asks for."""
        registry = CollectorRegistry()
        registry.register(_Samples(samples))
        registry.register(self._requests)
        encode, content_type = exposition.choose_encoder(accept)
        return encode(registry), content_type


class _Samples:
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for metric, samples in grouped(self._samples).items():
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = kind(metric.family, metric.help, labels=metric.labels)
            for sample in samples:
                family.add_metric([sample.labels[name] for name in metric.labels], sample.value)
            yield family
