"""The backend: transformers' models behind the engine interface, batched continuously."""

import logging
import time
from concurrent.futures import Future
from typing import Final

import numpy as np
import torch

from chatfleet.engines.base import (
    Backend,
    Capabilities,
    EngineConfig,
    EngineStats,
    Fault,
    FinishReason,
    GenerateRequest,
    RequestRefused,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)
from chatfleet.engines.checks import check_prompt, check_request
from chatfleet.engines.matching import COMPILE_POLL_S, Grammar, Grammars
from chatfleet.engines.memory import KV_FRACTION, available_bytes, kv_blocks
from chatfleet.engines.transformers import HONOURED_PARAMETERS, MAX_TOP_LOGPROBS
from chatfleet.engines.transformers.loading import load_model
from chatfleet.engines.transformers.pages import PagePool
from chatfleet.engines.transformers.runner import EXACT_ROWS, StepLogits, make_runner
from chatfleet.engines.transformers.sampling import RowState, Sampler, prompt_logprobs
from chatfleet.engines.transformers.scheduler import Part, Running, Scheduler

logger = logging.getLogger(__name__)

PAGE_TOKENS: Final = 16
GPU_STEP_TOKENS: Final = 2048
STEP_TARGET_S: Final = 0.150
MIN_STEP_TOKENS: Final = 64
"""On 2 cores with 22 GB/s a step of a 0.39B model takes 52 ms with one token, and 0.7 ms more for each other."""
MAX_STEP_TOKENS: Final = 256
_GPU_MEMORY_FRACTION: Final = 0.9
_PROBE_TOKENS: Final = (16, 128)
_PROBE_RUNS: Final = 3


class TransformersBackend(Backend):
    """Serves any causal language model that transformers loads, with continuous batching and prefix caching.

    Determinism: with a seed, or greedily, the tokens depend on the request alone as far as the products do. In reduced
    precision a row's product depends in its last bits on how many others are computed beside it;
    `EngineConfig.deterministic` computes in float32 with as many rows in every step, so that it does not. Random
    numbers are made of a request's seed and the number of its tokens, so an answer that another engine has begun
    goes on as it would have there.
    """

    @torch.inference_mode()
    def __init__(self, config: EngineConfig) -> None:
        """Load the model. Raises ConfigurationError."""
        self._config = config
        self._loaded = load_model(config)
        self._runner = make_runner(self._loaded, exact=config.deterministic)
        self._sampler = Sampler(self._loaded.vocab_size, self._loaded.device)
        self._pool = PagePool(self._plan_pages(), PAGE_TOKENS)
        self._runner.allocate(self._pool.pages, PAGE_TOKENS)
        tokens = self._step_tokens()
        max_running = min(config.max_concurrency, tokens - tokens // 4)
        self._scheduler = Scheduler(
            self._pool,
            step_tokens=tokens,
            prompt_tokens=self._prompt_tokens(tokens),
            max_running=max_running,
            whole_prompts=self._runner.whole_prompts,
            shares_pages=self._runner.is_batched,
        )
        self._owed: set[int] = set()
        """Requests that gave their pages to an embedding and have had no token since."""
        tokens_of = config.token_bytes
        self._grammars = None if tokens_of is None else Grammars(tokens_of, self._loaded.vocab_size)
        self._compiling: dict[int, tuple[GenerateRequest, Future[Grammar | Fault]]] = {}
        """Requests that wait for their grammar, by id."""
        self._capabilities = Capabilities(
            engine="transformers",
            parameters=HONOURED_PARAMETERS if self._grammars else HONOURED_PARAMETERS - {"grammar"},
            context_length=min(self._loaded.context_length, self._pool.tokens),
            vocab_size=self._loaded.vocab_size,
            embedding_dim=self._loaded.hidden_size,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            grammar_syntax="lark" if self._grammars else None,
        )
        self._generated_tokens = 0
        self._steps = 0
        logger.info(
            "%s (%s) on %s in %s, %s: context %d, KV pool %d tokens, up to %d requests and %d tokens a step",
            self._loaded.name,
            self._loaded.model_type,
            self._loaded.device,
            str(self._loaded.dtype).removeprefix("torch."),
            "batched" if self._runner.is_batched else "one sequence at a time",
            self._capabilities.context_length,
            self._pool.tokens,
            max_running,
            tokens,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def add(self, request: GenerateRequest) -> None:
        check_request(request, self._capabilities)
        if request.sampling.grammar is None or self._grammars is None:
            self._scheduler.add(self._sequence(request))
            return
        compiled = self._grammars.compile(request.sampling.grammar)
        if compiled.done():
            self._scheduler.add(self._sequence(request, compiled.result()))
        else:
            self._compiling[request.request_id] = (request, compiled)

    def cancel(self, request_id: int) -> None:
        self._remove(request_id)

    def _remove(self, request_id: int) -> None:
        self._compiling.pop(request_id, None)
        self._owed.discard(request_id)
        self._scheduler.remove(request_id)

    @torch.inference_mode()
    def step(self) -> list[TokenDelta]:
        refused = self._add_compiled()
        parts = self._scheduler.plan()
        if not parts:
            return refused
        logits = self._runner.run(parts)
        drawn = self._draw(logits)
        for part, rows in logits.prompts:
            self._take_prompt_logprobs(part, rows)
        self._scheduler.computed(parts)
        self._steps += 1
        deltas = [self._advance(*entry) for entry in drawn]
        self._generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return refused + deltas

    def next_step_s(self) -> float | None:
        if self._scheduler.has_work or any(compiled.done() for _, compiled in self._compiling.values()):
            return 0.0
        return COMPILE_POLL_S if self._compiling else None

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._compiling),
            kv_cache_usage=self._pool.usage,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def embedding_ready(self) -> bool:
        """Not before those that the last embedding preempted have had a token, or embeddings would starve them."""
        return not self._owed

    @torch.inference_mode()
    def embed(self, prompt_token_ids: list[int]) -> bytes:
        """The mean of the last hidden states, normalised. Requests that run may have to give their pages for it, and
        are computed again later."""
        check_prompt(prompt_token_ids, self._capabilities)
        pages = self._pool.pages_for(len(prompt_token_ids))
        self._owed.update(self._scheduler.make_room(pages))
        sampling = SamplingParams(max_tokens=0)
        sequence = self._sequence(GenerateRequest(request_id=0, prompt_token_ids=prompt_token_ids, sampling=sampling))
        sequence.pages = self._pool.take(pages)
        total = np.zeros(self._loaded.hidden_size, np.float64)
        size = len(prompt_token_ids) if self._runner.whole_prompts else self._scheduler.step_tokens
        try:
            for start in range(0, len(prompt_token_ids), size):
                part = Part(sequence, start, min(start + size, len(prompt_token_ids)))
                total += self._runner.hidden_states(part).double().sum(dim=0).cpu().numpy()
        finally:
            if not np.isfinite(total).all():
                self._runner.wipe(sequence.pages)
            self._pool.give_back(sequence.pages)
        if not np.isfinite(total).all():
            raise RequestRefused(Fault(message="The model gave no finite numbers for this input."))
        norm = float(np.linalg.norm(total))
        return (total / norm if norm > 0 else total).astype("<f4").tobytes()

    def recover(self) -> None:
        self._owed.clear()
        self._compiling.clear()
        self._scheduler.clear()
        self._runner.allocate(self._pool.pages, PAGE_TOKENS)

    def _add_compiled(self) -> list[TokenDelta]:
        """Let those go whose grammar is there. Returns the faults of those whose grammar is refused."""
        refused = []
        for request_id, (request, compiled) in list(self._compiling.items()):
            if compiled.done():
                del self._compiling[request_id]
                try:
                    self._scheduler.add(self._sequence(request, compiled.result()))
                except RequestRefused as exc:
                    refused.append(TokenDelta(request_id=request_id, fault=exc.fault))
        return refused

    def _draw(self, logits: StepLogits) -> list[tuple[Running, int, TokenLogprobs | None, str | None]]:
        if not logits.sequences:  # all of the step was prompts that go on
            return []
        sampled = self._sampler.sample(logits.rows, [sequence.row for sequence in logits.sequences])
        return list(zip(logits.sequences, *sampled, strict=True))

    def _advance(
        self, sequence: Running, token_id: int, entry: TokenLogprobs | None, failure: str | None
    ) -> TokenDelta:
        """A sequence's next token, and what goes with its first one. After its last one it is gone from the engine."""
        sampling, row = sequence.request.sampling, sequence.row
        finish_reason: FinishReason | None = None
        token_ids = [token_id] if sampling.max_tokens > 0 and failure is None and not row.is_whole else []
        for token_id in token_ids:
            sequence.token_ids.append(token_id)
            row.append(token_id)
            if token_id in sampling.stop_token_ids and row.generated > sampling.min_tokens:
                finish_reason = "stop"
        fault = row.fault
        if failure is not None:
            fault = Fault(message=f"The model failed on this request: {failure}")
            self._runner.wipe(self._pool.withdraw(sequence.pages))
        elif fault is None and finish_reason is None:
            if row.is_whole:
                finish_reason = "stop"
            elif row.generated >= sampling.max_tokens:
                finish_reason = "length"
        self._owed.discard(sequence.request_id)
        if fault is not None or finish_reason is not None:
            self._remove(sequence.request_id)
        is_first, sequence.has_begun = not sequence.has_begun, True
        return TokenDelta(
            request_id=sequence.request_id,
            token_ids=token_ids,
            logprobs=[entry] if entry is not None and token_ids else None,
            prompt_logprobs=[None, *sequence.prompt_logprobs] if is_first and sampling.prompt_logprobs else None,
            cached_tokens=sequence.cached_tokens if is_first else None,
            finish_reason=finish_reason,
            fault=fault,
        )

    def _take_prompt_logprobs(self, part: Part, logits: torch.Tensor) -> None:
        """`logits` are those of the tokens that follow each of the part's; some of these may be of the answer."""
        sequence = part.sequence
        if sequence.has_begun:
            return  # they were told before it was preempted
        successors = sequence.request.prompt_token_ids[part.start + 1 : part.start + 1 + len(logits)]
        top = sequence.request.sampling.logprobs or 0
        sequence.prompt_logprobs += prompt_logprobs(logits[: len(successors)], successors, top)

    def _plan_pages(self) -> int:
        """Pages of the KV cache: what --kv-cache-gb says, else a part of the free memory."""
        layers = self._runner.layers
        config = self._config
        if self._loaded.device.type == "cpu":
            free_bytes, fraction = int(available_bytes() * config.memory_share), KV_FRACTION
        else:
            free_bytes, fraction = self._free_gpu_bytes(), 1.0  # what others need has been left out of it
        return 1 + kv_blocks(
            bytes_per_block=max(1, sum(layer.bytes_per_token for layer in layers)) * PAGE_TOKENS,
            block_tokens=PAGE_TOKENS,
            context_length=self._loaded.context_length,
            max_concurrency=config.max_concurrency,
            free_bytes=free_bytes,
            kv_cache_gb=config.kv_cache_gb,
            fraction=fraction,
        )

    def _free_gpu_bytes(self) -> int:
        """What keys and values may take of the fullest GPU, times the number of GPUs that have layers."""
        devices = {layer.device for layer in self._runner.layers}
        free = []
        for device in devices:
            available, total = torch.accelerator.get_memory_info(device)
            most = total * _GPU_MEMORY_FRACTION
            if self._config.max_gpu_memory_gb is not None:
                most = min(most, self._config.max_gpu_memory_gb * 1e9)
            free.append(max(0, int(most * self._config.memory_share - (total - available))))
        return min(free, default=0) * len(devices)

    def _step_tokens(self) -> int:
        """How many tokens a step may compute, running answers' included: on a CPU as many as take STEP_TARGET_S."""
        if self._config.deterministic:
            return EXACT_ROWS
        if self._config.max_num_batched_tokens is not None:
            return self._config.max_num_batched_tokens
        if self._loaded.device.type != "cpu":
            return GPU_STEP_TOKENS
        few, many = _PROBE_TOKENS
        few_s, many_s = (self._step_s(count) for count in _PROBE_TOKENS)
        per_token_s = max(1e-9, (many_s - few_s) / (many - few))
        room = (STEP_TARGET_S - few_s) / per_token_s + few
        return int(min(max(room, MIN_STEP_TOKENS), MAX_STEP_TOKENS)) // 16 * 16

    def _prompt_tokens(self, step_tokens: int) -> int:
        """How many a step may compute that reads prompts only: nobody waits for a token then."""
        if self._config.deterministic or self._config.max_num_batched_tokens is not None:
            return step_tokens
        return max(step_tokens, MAX_STEP_TOKENS)

    def _step_s(self, count: int) -> float:
        """The least time of a step that reads `count` tokens."""
        count = min(count, self._loaded.context_length, self._pool.tokens)
        request = GenerateRequest(request_id=0, prompt_token_ids=[0] * count, sampling=SamplingParams(max_tokens=1))
        sequence = self._sequence(request)
        sequence.pages = self._pool.take(self._pool.pages_for(count))
        times = []
        for _ in range(_PROBE_RUNS):
            start = time.perf_counter()
            self._runner.run([Part(sequence, 0, count)])
            times.append(time.perf_counter() - start)
        self._pool.give_back(sequence.pages)
        return min(times)

    def _sequence(self, request: GenerateRequest, compiled: Grammar | Fault | None = None) -> Running:
        """Raises RequestRefused for a grammar that could not be compiled."""
        sampling = request.sampling
        matcher = None
        if compiled is not None and self._grammars is not None:
            matcher = self._grammars.matcher(compiled, sampling.stop_token_ids)
        row = RowState(sampling, request.prompt_token_ids, request.output_token_ids, matcher)
        return Running(request, row, request.prompt_token_ids + request.output_token_ids)
