"""What a worker measures: requests as every server does, and the choices that its engine generates, as vLLM does."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Final, Self

from prometheus_client.core import Metric

from chatfleet.engines.base import EngineStats, FinishReason
from chatfleet.observability.exposition import Scrape
from chatfleet.observability.families import counter, gauge, generation_families, histogram, request_families
from chatfleet.observability.histogram import LATENCY_EDGES, TOKEN_EDGES, Histogram
from chatfleet.observability.requests import EndpointNumbers, RequestMetrics
from chatfleet.worker.admission import Admission

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
_ENDPOINTS: Final = (CHAT, COMPLETIONS, EMBEDDINGS, "/v1/tokenize", "/v1/detokenize", "/v1/models")
_ENGINE: Final = (("engine", "0"),)
"""vLLM numbers the engines of a server; a worker has one."""


class WorkerMetrics(RequestMetrics):
    """The numbers of one worker, all under the first of its model's names. Used on one event loop."""

    def __init__(self, model_name: str, admission: Admission, engine_stats: Callable[[], EngineStats]) -> None:
        super().__init__(_ENDPOINTS)
        self.model_name = model_name
        self._admission = admission
        self._engine_stats = engine_stats
        self.finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self.cache_queries = self.cache_hits = 0
        self.queue_time = Histogram.over(LATENCY_EDGES)
        self.prefill_time = Histogram.over(LATENCY_EDGES)
        self.decode_time = Histogram.over(LATENCY_EDGES)
        self.inference_time = Histogram.over(LATENCY_EDGES)
        self.prompt_sizes = Histogram.over(TOKEN_EDGES)
        self.completion_sizes = Histogram.over(TOKEN_EDGES)
        for endpoint in (CHAT, COMPLETIONS):
            self.of(model_name, endpoint)  # so that they are there before the first request, at zero

    def at(self, endpoint: str) -> EndpointNumbers:
        """The numbers of this worker's model at an endpoint."""
        return self.of(self.model_name, endpoint)

    def begin(self, endpoint: str) -> "RequestMeter":
        """A request for generation has come."""
        return RequestMeter(self, self.at(endpoint))

    async def scrape(self) -> Scrape:
        requests = self.all()
        return Scrape(
            [*request_families(requests), *generation_families(requests, _ENGINE), *self._state(), *self._choices()]
        )

    def _state(self) -> list[Metric]:
        values = {
            "vllm:num_requests_running": ("Number of choices that have a slot.", self._admission.running),
            "vllm:num_requests_waiting": ("Number of choices that wait for a slot.", self._admission.waiting),
            "vllm:kv_cache_usage_perc": (
                "KV-cache usage. 1 means 100 percent usage.",
                self._engine_stats().kv_cache_usage,
            ),
        }
        labels, own = self._labels()
        return [gauge(name, help_text, labels, [(own, value)]) for name, (help_text, value) in values.items()]

    def _choices(self) -> list[Metric]:
        labels, own = self._labels()
        counts = {
            "vllm:prefix_cache_queries": ("Prompt tokens that were looked up in the prefix cache.", self.cache_queries),
            "vllm:prefix_cache_hits": ("Prompt tokens that the prefix cache held.", self.cache_hits),
        }
        histograms = {
            "vllm:request_queue_time_seconds": ("Histogram of time spent waiting for a slot.", self.queue_time),
            "vllm:request_prefill_time_seconds": ("Histogram of time from slot to first token.", self.prefill_time),
            "vllm:request_decode_time_seconds": ("Histogram of time from first to last token.", self.decode_time),
            "vllm:request_inference_time_seconds": ("Histogram of time from slot to last token.", self.inference_time),
            "vllm:request_prompt_tokens": ("Histogram of prompt tokens of finished choices.", self.prompt_sizes),
            "vllm:request_generation_tokens": ("Histogram of tokens of finished choices.", self.completion_sizes),
        }
        return [
            counter(
                "vllm:request_success",
                "Choices that are over, by the reason: also abort (the client left) and error.",
                (*labels, "finished_reason"),
                (((*own, reason), count) for reason, count in self.finished.items()),
            ),
            *(counter(name, help_text, labels, [(own, value)]) for name, (help_text, value) in counts.items()),
            *(histogram(name, help_text, labels, [(own, one)]) for name, (help_text, one) in histograms.items()),
        ]

    def _labels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("model_name", *(name for name, _ in _ENGINE)), (self.model_name, *(value for _, value in _ENGINE))


class MeteredEvents:
    """A stream's events as they are, and whether it broke: ended with an error after its first event."""

    def __init__(self, events: AsyncGenerator[bytes, None], numbers: EndpointNumbers) -> None:
        self._events = events
        self._numbers = numbers
        self._begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            raise
        except Exception:
            self._numbers.streams_broken += self._begun
            raise
        self._begun = True
        return event

    async def aclose(self) -> None:
        await self._events.aclose()


class RequestMeter:
    """One request for generation, from its making on."""

    def __init__(self, metrics: WorkerMetrics, numbers: EndpointNumbers) -> None:
        self.metrics = metrics
        self.numbers = numbers
        self._arrived_s: float | None = time.perf_counter()

    def first_token(self, now_s: float) -> None:
        """A choice has its first token; only the first of all counts."""
        if self._arrived_s is not None:
            self.numbers.first_token.observe(now_s - self._arrived_s)
            self._arrived_s = None

    def choice(self, prompt_tokens: int, *, leads: bool) -> "ChoiceMeter":
        """A choice begins to wait for its slot. One of each prompt leads: with it the prompt's tokens are counted."""
        return ChoiceMeter(self, prompt_tokens, leads=leads)


class ChoiceMeter:
    """One choice: to be entered when it begins to wait for a slot, and left when it is over, however that comes."""

    def __init__(self, request: RequestMeter, prompt_tokens: int, *, leads: bool) -> None:
        self._request = request
        self._metrics = request.metrics
        self._prompt_tokens = prompt_tokens
        self._leads = leads
        self._completion_tokens = 0
        self._finish_reason: FinishReason | None = None

    def __enter__(self) -> Self:
        self._slot_s = self._first_s = self._last_s = 0.0
        self._waiting_since_s = time.perf_counter()
        return self

    def has_slot(self) -> None:
        self._slot_s = time.perf_counter()
        self._metrics.queue_time.observe(self._slot_s - self._waiting_since_s)

    def delta(self, tokens: int, cached_tokens: int | None, finish_reason: FinishReason | None) -> None:
        """The engine has generated `tokens`; `cached_tokens` are of the prompt, where the engine tells."""
        self._finish_reason = finish_reason
        if not tokens:
            return
        now_s, numbers = time.perf_counter(), self._request.numbers
        if self._last_s:
            numbers.gap.observe(now_s - self._last_s)
        else:
            self._first_s = now_s
            self._request.first_token(now_s)
            self._metrics.prefill_time.observe(now_s - self._slot_s)
            if self._leads:
                numbers.prompt_tokens += self._prompt_tokens
            if cached_tokens is not None:
                self._metrics.cache_queries += self._prompt_tokens
                self._metrics.cache_hits += cached_tokens
        self._last_s = now_s
        self._completion_tokens += tokens
        numbers.completion_tokens += tokens

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        metrics = self._metrics
        if self._finish_reason is None:
            metrics.finished["error" if isinstance(error, Exception) else "abort"] += 1
            return
        metrics.finished[self._finish_reason] += 1
        if not self._completion_tokens:
            return
        metrics.decode_time.observe(self._last_s - self._first_s)
        metrics.inference_time.observe(self._last_s - self._slot_s)
        metrics.prompt_sizes.observe(self._prompt_tokens)
        metrics.completion_sizes.observe(self._completion_tokens)
