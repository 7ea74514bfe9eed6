"""Metrics as Prometheus reads them: workers added up, in its text formats, on a port of their own.

Counters of workers that are gone stay, since rates must not fall; their gauges go.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from featurestore.errors import ConfigError
from featurestore.loopback import is_loopback
from serving.metrics import FAMILIES, Distribution, Family, Labels, Snapshot, Value

log = logging.getLogger(__name__)

Collect = Callable[[], Snapshot]


# ---------------------------------------------------------------- several workers


def merged(live: Iterable[Snapshot], gone: Iterable[Snapshot] = ()) -> Snapshot:
    """One snapshot of all: counters and histograms added up; gauges only of the live."""
    total = Snapshot()
    for snapshots, with_gauges in ((live, True), (gone, False)):
        for snapshot in snapshots:
            for name, values in snapshot.values.items():
                family = FAMILIES.get(name)
                if family is not None and (with_gauges or family.kind != "gauge"):
                    _merge(total.values.setdefault(name, {}), values, family)
    return total


def _merge(into: dict[Labels, Value], values: dict[Labels, Value], family: Family) -> None:
    for labels, value in values.items():
        before = into.get(labels)
        if before is None:
            into[labels] = value
        elif isinstance(before, Distribution):
            assert isinstance(value, Distribution)
            counts = [a + b for a, b in zip(before.counts, value.counts, strict=True)]
            into[labels] = Distribution(counts, before.sum_s + value.sum_s)
        else:
            assert not isinstance(value, Distribution)
            into[labels] = max(before, value) if family.merge == "max" else before + value


# ---------------------------------------------------------------- the text


class _Numbers(Collector):
    """A snapshot as the library's metric families; every metric carries the project."""

    def __init__(self, project: str, collect: Collect, families: Mapping[str, Family]) -> None:
        self._project, self._collect, self._families = project, collect, families

    def collect(self) -> Iterable[Metric]:
        snapshot = self._collect()
        for family in self._families.values():
            yield _metric(family, self._project, snapshot.values.get(family.name, {}))


def _metric(family: Family, project: str, values: dict[Labels, Value]) -> Metric:
    labels = ("project", *family.labels)
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
        les = [*map(str, family.bounds), "+Inf"]
        for given, value in sorted(values.items()):
            assert isinstance(value, Distribution)
            total = 0
            buckets = [(le, total := total + count) for le, count in zip(les, value.counts, strict=True)]
            histogram.add_metric((project, *given), buckets, value.sum_s)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=labels)
    for given, value in sorted(values.items()):
        assert not isinstance(value, Distribution)
        metric.add_metric((project, *given), value)
    return metric


def _registry(project: str, collect: Collect, families: Mapping[str, Family] = FAMILIES) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Numbers(project, collect, families))
    return registry


def exposition(project: str, collect: Collect, accept: str = "") -> tuple[bytes, str]:
    """The numbers in the text format that an Accept header asks for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_registry(project, collect)), content_type


@contextmanager
def metrics_port(
    project: str, collect: Collect, host: str, port: int, families: Mapping[str, Family] = FAMILIES
) -> Iterator[str]:
    """Answer scrapes on a port meanwhile, from a thread; yields `host:port` (port 0 takes a free one)."""
    try:
        server, thread = start_http_server(port, host, _registry(project, collect, families))
    except OSError as error:
        taken = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"cannot serve metrics on {host}:{port}: {taken}; set another metrics.port, or 0 for a free one"
        ) from error
    address = f"{host}:{server.server_port}"
    if not is_loopback(host):
        log.warning(
            "metrics on %s are readable to whoever reaches the port, names of services and views too; set metrics.host "
            "to 127.0.0.1, or scrape the /metrics of REST, which asks for a token",
            address,
        )
    log.info("metrics on http://%s/metrics", address)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
