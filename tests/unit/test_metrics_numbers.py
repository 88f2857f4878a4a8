"""Counting requests: histograms, bounds, what Prometheus gets to see."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.observability.exposition import Scrape, metrics_response
from chatfleet.observability.families import forwarding_families, generation_families, request_families
from chatfleet.observability.histogram import DURATION_EDGES, GAP_EDGES, LATENCY_EDGES, TOKEN_EDGES, Histogram
from chatfleet.observability.requests import MAX_MODELS, EndpointNumbers, RequestMetrics, summed
from support.metrics import CONTENT_TYPE, Scraped, parsed

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

seconds = st.one_of(st.floats(0, 1e5), st.sampled_from(DURATION_EDGES))


def over(values: list[float], edges: tuple[float, ...] = DURATION_EDGES) -> Histogram:
    histogram = Histogram.over(edges)
    for value in values:
        histogram.observe(value)
    return histogram


def cumulative(values: list[float], edges: tuple[float, ...]) -> list[tuple[str, float]]:
    """What Prometheus defines, counted one by one."""
    return [(str(edge), sum(value <= edge for value in values)) for edge in edges] + [("+Inf", len(values))]


@given(st.lists(seconds, max_size=60))
def test_a_bucket_has_the_values_up_to_its_edge(values: list[float]) -> None:
    histogram = over(values)
    assert histogram.buckets() == cumulative(values, DURATION_EDGES)
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values))


@given(st.lists(seconds, max_size=60))
def test_coarser_buckets_read_off_finer_ones_are_exact(values: list[float]) -> None:
    assert over(values).buckets(LATENCY_EDGES) == cumulative(values, LATENCY_EDGES)


@given(st.lists(seconds, max_size=30), st.lists(seconds, max_size=30))
def test_adding_histograms_is_counting_all_their_values(one: list[float], other: list[float]) -> None:
    histogram = over(one)
    histogram.add(over(other))
    assert histogram.buckets() == over(one + other).buckets()
    assert histogram.total == pytest.approx(sum(one) + sum(other))


def test_histograms_with_other_buckets_are_not_added() -> None:
    numbers, other = EndpointNumbers.of("m", CHAT), EndpointNumbers.of("m", CHAT)
    other.first_token.observe(1.0)
    other.gap = over([0.1], GAP_EDGES[1:])
    with pytest.raises(ValueError, match="buckets"):
        numbers.add(other)
    assert numbers == EndpointNumbers.of("m", CHAT)


def test_edges_of_token_counts_go_up_by_one_two_five() -> None:
    assert TOKEN_EDGES[:7] == (1, 2, 5, 10, 20, 50, 100)
    assert TOKEN_EDGES[-1] == 1_000_000


def test_numbers_of_a_model_and_endpoint_are_one_object() -> None:
    metrics = RequestMetrics([CHAT])
    assert metrics.of("m", CHAT) is metrics.of("m", CHAT)
    assert metrics.of("m", CHAT) is not metrics.of("n", CHAT)


def test_paths_that_are_no_endpoints_are_not_told_apart() -> None:
    metrics = RequestMetrics([CHAT])
    assert metrics.of("", "/../etc") is metrics.of("", "/other")
    assert {(one.model_name, one.endpoint) for one in metrics.all()} == {("", "")}


def test_models_beyond_the_bound_are_counted_together() -> None:
    metrics = RequestMetrics([CHAT])
    for number in range(3 * MAX_MODELS):
        metrics.of(f"model-{number}", CHAT).ended(200, 0.1)
    assert len(metrics.all()) == MAX_MODELS + 1
    assert sum(one.by_status[200] for one in metrics.all()) == 3 * MAX_MODELS
    assert metrics.of("", CHAT).by_status == {200: 2 * MAX_MODELS}
    assert metrics.of("model-7", CHAT).by_status == {200: 1}


def test_failures_count_under_their_status_and_have_no_duration() -> None:
    numbers = EndpointNumbers.of("m", CHAT)
    for status in (200, 200, 404, 499, 502):
        numbers.ended(status, 0.5, 3, None)
    assert numbers.by_status == {200: 2, 404: 1, 499: 1, 502: 1}
    assert numbers.duration.count == 2
    assert (numbers.prompt_tokens, numbers.completion_tokens) == (15, 0)


def test_what_is_in_flight_counts_only_of_the_living() -> None:
    one, two = EndpointNumbers.of("m", CHAT), EndpointNumbers.of("m", CHAT)
    for numbers in (one, two):
        numbers.in_flight, numbers.retries, numbers.streams_broken = 2, 3, 4
        numbers.ended(200, 0.1, 5, 6)
    (total,) = summed([([one], True), ([two], False)])
    assert total.in_flight == 2
    assert (total.retries, total.streams_broken, total.prompt_tokens, total.completion_tokens) == (6, 8, 10, 12)
    assert total.by_status == {200: 2}


async def told(*requests: EndpointNumbers) -> Scraped:
    families = [*request_families(requests), *generation_families(requests), *forwarding_families(requests)]

    class Source:
        async def scrape(self) -> Scrape:
            return Scrape(families)

    body, content_type = await metrics_response(Source())
    assert content_type == CONTENT_TYPE
    return parsed(body.decode())


async def test_prometheus_reads_the_numbers_under_vllms_names() -> None:
    chat, embeddings = EndpointNumbers.of("m", CHAT), EndpointNumbers.of("m", EMBEDDINGS)
    chat.first_token.observe(0.03)
    chat.gap.observe(0.02)
    chat.ended(200, 2.0, 7, 9)
    chat.retries, chat.streams_broken, chat.in_flight = 2, 1, 4
    embeddings.ended(200, 0.004, 5, None)
    embeddings.ended(400, 0.001)
    scraped = await told(chat, embeddings)
    assert scraped.value("chatfleet:requests_total", model_name="m", endpoint=CHAT, status="200") == 1
    assert scraped.value("chatfleet:requests_total", model_name="m", endpoint=EMBEDDINGS, status="400") == 1
    assert scraped.value("vllm:prompt_tokens_total", model_name="m") == 12
    assert scraped.value("vllm:generation_tokens_total", model_name="m") == 9
    assert scraped.value("vllm:time_to_first_token_seconds_bucket", model_name="m", le="0.02") == 0
    assert scraped.value("vllm:time_to_first_token_seconds_bucket", model_name="m", le="0.04") == 1
    assert scraped.value("vllm:inter_token_latency_seconds_sum", model_name="m") == 0.02
    assert scraped.value("vllm:e2e_request_latency_seconds_count", model_name="m") == 1, "embeddings are none of these"
    assert scraped.value("chatfleet:request_duration_seconds_count", model_name="m", endpoint=EMBEDDINGS) == 1
    assert scraped.value("chatfleet:retries_total", model_name="m") == 2
    assert scraped.value("chatfleet:streams_broken_total", model_name="m") == 1
    assert scraped.value("chatfleet:requests_in_flight", model_name="m", endpoint=CHAT) == 4
    assert scraped.total("chatfleet:build_info") == 1
    assert scraped.total("process_cpu_seconds_total") > 0


async def test_any_model_name_is_a_label_that_can_be_read() -> None:
    rng = random.Random(1)
    names = ['a"b', "a\\b", "a\nb", "org/model:8b", "".join(chr(rng.randrange(32, 0x2FF)) for _ in range(99))]
    requests = [EndpointNumbers.of(name, CHAT) for name in names]
    for one in requests:
        one.ended(200, 0.1)
    scraped = await told(*requests)
    assert scraped.label_values("model_name") == set(names)
