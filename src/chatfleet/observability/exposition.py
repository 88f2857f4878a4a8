"""Answering a scrape."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from chatfleet import __version__

METRICS_PATH: Final = "/metrics"

# OpenMetrics is not offered: prometheus_client 0.26 writes the colon of a sample's name as an underscore there.
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a component tells at one moment. `processes` are its processes by name, where there are several."""

    families: list[Metric]
    processes: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """A component that measures itself."""

    async def scrape(self) -> Scrape: ...


async def metrics_response(source: Source) -> tuple[bytes, str]:
    """The body and content type for a scrape, in Prometheus's text format.

    Written in a thread: a thousand series take about ten milliseconds.
    """
    return await asyncio.to_thread(_rendered, await source.scrape()), _CONTENT_TYPE


def _rendered(scrape: Scrape) -> bytes:
    build = InfoMetricFamily("chatfleet:build", "The version that runs.", value={"version": __version__})
    return generate_latest(_Families([*scrape.families, build, *_process_families(scrape.processes)]))


class _Families(Collector):
    """Families as prometheus_client's writer takes them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _process_families(processes: Mapping[str, int]) -> list[Metric]:
    """prometheus_client's process_*; of several processes each with its name as the label `process`, since the one that
    answers is another every time. Empty where there is no /proc."""
    if not processes:
        return list(_of_process(os.getpid()))
    families: dict[str, Metric] = {}
    for name, pid in processes.items():
        for family in _of_process(pid):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [sample._replace(labels={**sample.labels, "process": name}) for sample in family.samples]
    return list(families.values())


def _of_process(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
