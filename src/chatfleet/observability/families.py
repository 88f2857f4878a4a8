"""Numbers as Prometheus's families: what each is called and says."""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from chatfleet.observability.circuits import CircuitNumbers
from chatfleet.observability.histogram import LATENCY_EDGES, Histogram
from chatfleet.observability.requests import EndpointNumbers

Rows = Iterable[tuple[Sequence[str], float]]

GENERATING: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""The endpoints whose answers are made token by token."""


def counter(name: str, help_text: str, labels: Sequence[str], rows: Rows) -> Metric:
    """`rows` are label values and a value each. Prometheus writes _total behind the name."""
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def gauge(name: str, help_text: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def histogram(
    name: str,
    help_text: str,
    labels: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Histogram]],
    edges: tuple[float, ...] | None = None,
) -> Metric:
    """`edges` where not all of the histogram's own are to be shown."""
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, one in rows:
        family.add_metric(values, one.buckets(edges), one.total)
    return family


def request_families(requests: Sequence[EndpointNumbers]) -> list[Metric]:
    """What every server has."""
    by_endpoint = ("model_name", "endpoint")
    return [
        counter(
            "chatfleet:requests",
            "Requests that are over, by the status of the answer; 499 is a client that left before its end.",
            (*by_endpoint, "status"),
            (
                ((one.model_name, one.endpoint, str(status)), count)
                for one in requests
                for status, count in sorted(one.by_status.items())
            ),
        ),
        histogram(
            "chatfleet:request_duration_seconds",
            "From the arrival of a request that was answered (2xx) to the end of its answer.",
            by_endpoint,
            (((one.model_name, one.endpoint), one.duration) for one in requests if one.duration.count),
        ),
    ]


def generation_families(requests: Sequence[EndpointNumbers], extra: tuple[tuple[str, str], ...] = ()) -> list[Metric]:
    """What a server of models has, in vLLM's words. `extra` are labels and values for those of its names that stand
    beside model_name there."""
    models = _by_model(requests)
    generating = _by_model(one for one in requests if one.endpoint in GENERATING)
    labels = ("model_name", *(label for label, _ in extra))
    more = tuple(value for _, value in extra)
    return [
        histogram(
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            labels,
            (((one.model_name, *more), one.first_token) for one in generating),
        ),
        histogram(
            "vllm:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            labels,
            (((one.model_name, *more), one.gap) for one in generating),
        ),
        histogram(
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            labels,
            (((one.model_name, *more), one.duration) for one in generating),
            edges=LATENCY_EDGES,
        ),
        counter(
            "vllm:prompt_tokens",
            "Number of prompt tokens.",
            labels,
            (((one.model_name, *more), one.prompt_tokens) for one in models),
        ),
        counter(
            "vllm:generation_tokens",
            "Number of generation tokens.",
            labels,
            (((one.model_name, *more), one.completion_tokens) for one in generating),
        ),
        counter(
            "chatfleet:streams_broken",
            "Streams that began (status 200) and ended with an error. A client's leaving is none.",
            ("model_name",),
            (((one.model_name,), one.streams_broken) for one in generating),
        ),
    ]


def forwarding_families(requests: Sequence[EndpointNumbers]) -> list[Metric]:
    """What a server that asks others has."""
    by_endpoint = ("model_name", "endpoint")
    return [
        gauge(
            "chatfleet:requests_in_flight",
            "Requests that are being answered.",
            by_endpoint,
            (((one.model_name, one.endpoint), one.in_flight) for one in requests),
        ),
        counter(
            "chatfleet:retries",
            "Requests sent again, because a worker failed or refused them.",
            ("model_name",),
            (((one.model_name,), one.retries) for one in _by_model(requests)),
        ),
        counter(
            "chatfleet:streams_resumed",
            "How often a stream went on from another worker in its middle. They are among the retries.",
            ("model_name",),
            (((one.model_name,), one.resumed) for one in _by_model(requests)),
        ),
        counter(
            "chatfleet:idempotent_replays",
            "Requests that got the answer to an earlier one with their Idempotency-Key, and are not counted otherwise.",
            ("endpoint",),
            (((one.endpoint,), one.idempotent_replays) for one in requests if not one.model_name),
        ),
        counter(
            "chatfleet:completions_stored",
            "Answers that are kept, as their requests wanted (store).",
            ("model_name",),
            (((one.model_name,), one.stored) for one in _by_model(requests)),
        ),
        counter(
            "chatfleet:completions_not_stored",
            "Answers that are not kept although their requests wanted it: too large, or the database failed.",
            ("model_name",),
            (((one.model_name,), one.not_stored) for one in _by_model(requests)),
        ),
    ]


def circuit_families(circuits: Sequence[CircuitNumbers]) -> list[Metric]:
    """What a server has that leaves out workers which fail."""
    labels = ("model_name", "worker")
    return [
        gauge(
            "chatfleet:worker_circuit_state",
            "Whether a worker gets requests: 0 closed (it does), 1 half-open (one at a time), 2 open (it fails them).",
            labels,
            (((one.model_name, one.worker), one.state) for one in circuits if one.state is not None),
        ),
        counter(
            "chatfleet:worker_circuit_opened",
            "How often a worker was left out because requests to it failed.",
            labels,
            (((one.model_name, one.worker), one.opened) for one in circuits),
        ),
    ]


def _by_model(requests: Iterable[EndpointNumbers]) -> list[EndpointNumbers]:
    """All endpoints of each model as one. Requests without a model have no tokens, and are left out."""
    models: dict[str, EndpointNumbers] = {}
    for one in requests:
        if one.model_name or one.duration.count:
            models.setdefault(one.model_name, EndpointNumbers.of(one.model_name, "")).add(one)
    return list(models.values())
