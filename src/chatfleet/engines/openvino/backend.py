"""The backend: openvino-genai's ContinuousBatchingPipeline behind the engine interface."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from chatfleet.core.errors import ConfigurationError
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
)
from chatfleet.engines.checks import check_prompt, check_request
from chatfleet.engines.memory import available_bytes, kv_blocks
from chatfleet.engines.openvino.adapter_files import read_adapter
from chatfleet.engines.openvino.admission import Need, Pool
from chatfleet.engines.openvino.devices import find_device, load_advice
from chatfleet.engines.openvino.grammars import MEMORY_BYTES, POLL_S, Grammars
from chatfleet.engines.openvino.lora import adapted_folder, show_effect
from chatfleet.engines.openvino.model_files import ModelInfo, first_line, inspect_model, ir_folder
from chatfleet.engines.openvino.prefill import measure_step_cost, step_tokens
from chatfleet.engines.openvino.reading import HiddenStates, LogProbabilities, OnDemand, embedding
from chatfleet.engines.openvino.running import Running
from chatfleet.engines.openvino.sampling import generation_settings, has_state, honoured_parameters
from chatfleet.engines.openvino.scoring import PromptLogprobs, PromptScorer
from chatfleet.engines.openvino.speculation import pipeline_folder, plan_speculation

logger = logging.getLogger(__name__)

MIN_SPECULATING = 8
"""So many requests at least can speculate in a step, however slow the model is."""

WHOLE_PROMPT_TOKENS = 1024
"""The longest prompt that is read beside other requests where a draft model proposes: a second of a 0.4B model's."""

_MOST_USED = 2.0
"""Of the memory for compiled grammars. From here on nothing begins until it is freed."""

MAX_RESTARTS = 3
"""A request that the pipeline ignored for want of memory starts again this often before it fails."""

DETERMINISTIC_PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else activations go to 8 bits before quantised weights
}

_FINISH_REASONS: dict[Any, FinishReason] = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


class OpenVINOBackend(Backend):
    """Serves a GGUF file or an OpenVINO IR folder with continuous batching and prefix caching.

    Determinism: the same seed, settings and prompt give the same tokens on the same machine when a request
    runs alone. In a batch, rows are computed by other kernels and in reduced precision, so a neighbour
    can change a token; `EngineConfig.deterministic` (f32 inference and KV cache, about half the speed)
    makes the tokens independent of the neighbours.

    An answer that another engine has begun goes on from its exact tokens. What the pipeline keeps beside the tokens
    begins anew there: the counts of presence and frequency penalties, and the random numbers behind a seed. In
    deterministic mode such a request is generated again from its prompt, up to where it was, and so goes on exactly;
    not one with a grammar, which is of the rest alone.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Load the model. Raises ConfigurationError."""
        self._config = config
        self._device = find_device(config.device)
        self._properties = DETERMINISTIC_PROPERTIES if config.deterministic else {}
        self._model = inspect_model(config.model_path)
        self._speculation = plan_speculation(config, self._model)
        self._adapter = None if config.lora_path is None else read_adapter(config.lora_path)
        if self._adapter is not None and config.draft_model_path is not None:
            raise ConfigurationError(
                "A draft model and a LoRA adapter were both asked for. The draft would propose what the model says "
                "without the adapter: leave out --draft-model, or give --prompt-lookup."
            )
        self._context_length = _context_length(config, self._model)
        try:
            self._pool = self._plan_pool()
        except RuntimeError as exc:  # the device computes nothing
            raise self._cannot_load(exc) from exc
        takes_grammars = config.token_bytes is not None and self._speculation is None
        self._capabilities = Capabilities(
            engine="openvino",
            parameters=honoured_parameters(
                shifted_logits=self._model.is_gguf,
                speculates=self._speculation is not None,
                knows_text=config.token_bytes is not None,
            ),
            context_length=min(self._context_length, self._pool.longest),
            vocab_size=self._model.vocab_size,
            embedding_dim=self._model.hidden_size,
            grammar_syntax="ebnf" if takes_grammars else None,
        )
        self._hidden_states = OnDemand(self._load_hidden_states)
        self._scorer = PromptScorer(
            self._hidden_states, OnDemand(self._load_log_probabilities), step_tokens=self._pool.step_tokens
        )
        self._compiling: deque[Running] = deque()
        """Requests whose grammars are not compiled yet."""
        self._ask_at = 0.0
        """When to ask for them again, by the monotonic clock in seconds."""
        self._waiting: deque[Running] = deque()
        self._running: dict[int, Running] = {}
        self._leaving: list[Need] = []
        """Cancelled requests, whose KV the pipeline frees at the end of its next step."""
        self._next_pipeline_id = 0
        self._generated_tokens = 0
        self._steps = 0
        self._grammars: Grammars | None = None
        self._pipeline: Any = self._build_pipeline()
        logger.info(
            "%s on %s: context %d, KV pool %d tokens, up to %d requests and %d tokens a step",
            self._model.path.name,
            self._device,
            self._capabilities.context_length,
            self._pool.longest,
            self._pool.max_running,
            self._pool.step_tokens,
        )
        if self._pool.longest < self._context_length:
            logger.warning(
                "memory for the KV cache bounds the context to %d of %d tokens: give --kv-cache-gb or more memory",
                self._pool.longest,
                self._context_length,
            )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def add(self, request: GenerateRequest) -> None:
        check_request(request, self._capabilities)
        self._settings(request.sampling)
        if request.sampling.prompt_logprobs:
            self._scorer.add(request)
        else:
            self._enqueue(request)

    def _enqueue(self, request: GenerateRequest, prompt_logprobs: PromptLogprobs | None = None) -> None:
        begun = request.output_token_ids
        queue = self._waiting if request.sampling.grammar is None else self._compiling
        queue.append(Running(request, list(begun), len(begun), prompt_logprobs))

    def cancel(self, request_id: int) -> None:
        self._scorer.cancel(request_id)
        self._compiling, self._waiting = (
            deque(entry for entry in queue if entry.request.request_id != request_id)
            for queue in (self._compiling, self._waiting)
        )
        entry = self._running.pop(request_id, None)
        if entry is not None:
            entry.handle.cancel()
            self._leaving.append(entry.need)

    def step(self) -> list[TokenDelta]:
        deltas = self._score() + self._compile()
        self._forget_grammars()
        self._admit()
        if not self._pipeline.has_non_finished_requests():
            return deltas
        self._pipeline.step()
        self._leaving.clear()
        self._steps += 1
        deltas += [delta for entry in list(self._running.values()) if (delta := self._collect(entry)) is not None]
        self._generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas

    def _score(self) -> list[TokenDelta]:
        """Read on in the prompts whose log probabilities are asked for; those that are read may be answered."""
        deltas = []
        for request, result in self._scorer.advance():
            request_id = request.request_id
            if isinstance(result, Fault):
                deltas.append(TokenDelta(request_id=request_id, fault=result))
            elif request.sampling.max_tokens == 0:
                deltas.append(TokenDelta(request_id=request_id, prompt_logprobs=result, finish_reason="length"))
            else:
                self._enqueue(request, result)
        return deltas

    def _compile(self) -> list[TokenDelta]:
        """Queue the requests whose grammars are compiled, and answer those whose grammars cannot be."""
        deltas = []
        for entry in [self._compiling.popleft() for _ in range(len(self._compiling))]:
            try:
                queue = self._waiting if self._is_compiled(entry) else self._compiling
            except RequestRefused as exc:
                deltas.append(TokenDelta(request_id=entry.request.request_id, fault=exc.fault))
            else:
                queue.append(entry)
        self._ask_at = time.monotonic() + POLL_S
        return deltas

    def _is_compiled(self, entry: Running) -> bool:
        grammar = entry.request.sampling.grammar
        return grammar is None or self._grammars is None or self._grammars.ready(grammar)

    def _forget_grammars(self) -> None:
        """Load the model anew where compiled grammars have taken too much memory, once nothing runs."""
        if self._grammars is None or self._grammars.used < 1 or self._running or self._leaving:
            return
        logger.info("compiled grammars take %.0f MB: loading the model anew", self._grammars.used * MEMORY_BYTES / 1e6)
        self._compiling.extendleft(reversed(self._waiting))
        self._waiting.clear()
        self._pipeline = None
        self._pipeline = self._build_pipeline()

    def next_step_s(self) -> float | None:
        if self._waiting or self._pipeline.has_non_finished_requests():
            return 0.0
        asking_s = max(0.0, self._ask_at - time.monotonic()) if self._compiling else None
        times = (asking_s, self._scorer.next_step_s())
        return min((time_s for time_s in times if time_s is not None), default=None)

    def stats(self) -> EngineStats:
        usage = self._pipeline.get_metrics().cache_usage / 100 if self._running else 0.0
        return EngineStats(
            running=len(self._running),
            waiting=len(self._compiling) + len(self._waiting) + len(self._scorer),
            kv_cache_usage=min(1.0, usage),
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def embedding_ready(self) -> bool:
        return self._hidden_states.ready()

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        """Waits for the embedding graph. A graph that could not be made is tried again by the next call."""
        check_prompt(prompt_token_ids, self._capabilities, context_length=self._context_length)
        return embedding(self._hidden_states.get(), prompt_token_ids)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """The model's IR with the adapter in it, for the time of the `with` block."""
        with ir_folder(self._model) as folder:
            if self._adapter is None:
                yield folder
                return
            with adapted_folder(folder, self._model, self._adapter) as adapted:
                yield adapted

    def _load_hidden_states(self) -> HiddenStates:
        with self._folder() as folder:
            return HiddenStates(folder, self._device, self._properties)

    def _load_log_probabilities(self) -> LogProbabilities:
        with self._folder() as folder:
            return LogProbabilities(folder, self._device, self._properties)

    def recover(self) -> None:
        self._forget_requests()
        self._pipeline = None  # before the new one: there may not be room for both
        self._pipeline = self._build_pipeline()

    def close(self) -> None:
        self._forget_requests()
        self._hidden_states.forget()
        self._pipeline = None
        if self._grammars is not None:
            self._grammars.close()

    def _forget_requests(self) -> None:
        self._scorer.clear()
        self._running.clear()
        self._compiling.clear()
        self._waiting.clear()
        self._leaving.clear()

    def _plan_pool(self) -> Pool:
        block_tokens = 32 if self._device == "CPU" else 16  # fixed in the pipeline
        # The pipeline's default element is F16 or U8, as the model says; the larger is planned for.
        element_bytes = 4 if self._config.deterministic else 2
        models = [self._model]
        decode_tokens, drafts = 1, False
        if self._speculation is not None:
            decode_tokens += self._speculation.tokens
            if self._speculation.draft is not None:  # its cache has as many blocks
                drafts = True
                models.append(self._speculation.draft)
        bytes_per_block = sum(model.kv.bytes_per_token(element_bytes) for model in models) * block_tokens
        blocks = kv_blocks(
            bytes_per_block=bytes_per_block,
            block_tokens=block_tokens,
            context_length=self._context_length,
            max_concurrency=self._config.max_concurrency,
            free_bytes=max(
                0, int(available_bytes() * self._config.memory_share) - sum(model.resident_bytes for model in models)
            ),
            kv_cache_gb=self._config.kv_cache_gb,
        )
        fixed_s, per_token_s = measure_step_cost(
            hidden_size=self._model.hidden_size,
            ffn_size=self._model.ffn_size,
            parameters=self._model.parameters,
            device=self._device,
            properties=self._properties,
        )
        tokens = self._config.max_num_batched_tokens or step_tokens(fixed_s=fixed_s, per_token_s=per_token_s)
        if decode_tokens > 1:
            tokens = max(tokens, MIN_SPECULATING * decode_tokens, WHOLE_PROMPT_TOKENS if drafts else 0)
        # Decoding requests come first in a step: with as many as its tokens, no prompt would ever be read.
        return Pool(
            blocks=blocks,
            block_tokens=block_tokens,
            step_tokens=tokens,
            max_running=min(self._config.max_concurrency, (tokens - tokens // 4) // decode_tokens),
            decode_tokens=decode_tokens,
            whole_prompts=drafts,
        )

    def _build_pipeline(self) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = self._pool.blocks
        scheduler.max_num_batched_tokens = self._pool.step_tokens
        scheduler.max_num_seqs = self._pool.max_running
        scheduler.dynamic_split_fuse = True
        # With prompt lookup and the prefix cache, one of some 450 random requests was answered wrongly, and not without
        # the cache (openvino-genai 2026.4.1). Why is not known, so a draft model goes without it, too.
        scheduler.enable_prefix_caching = self._speculation is None
        try:
            self._grammars = self._make_grammars()
            with self._pipeline_properties() as (folder, properties):
                if self._grammars is None:
                    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, self._device, properties)
                else:
                    tokenizer = self._grammars.tokenizer
                    pipeline = genai.ContinuousBatchingPipeline(
                        str(folder), tokenizer, scheduler, self._device, **properties
                    )
            self._warm_up(pipeline)
            if self._adapter is not None:
                show_effect(self._adapter, self._model.vocab_size, partial(self._say, pipeline))
        except (RuntimeError, MemoryError) as exc:
            raise self._cannot_load(exc) from exc
        return pipeline

    def _make_grammars(self) -> Grammars | None:
        if self._grammars is not None:
            self._grammars.close()
        token_bytes = self._config.token_bytes
        if token_bytes is None or self._capabilities.grammar_syntax is None:
            return None
        return Grammars(token_bytes, self._model.vocab_size)

    def _cannot_load(self, exc: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"OpenVINO could not load {self._model.path} on {self._device}: {first_line(exc)}. "
            f"{load_advice(self._device)}"
        )

    @contextmanager
    def _pipeline_properties(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The model's folder and the pipeline's properties, for the time of the `with` block."""
        properties: dict[str, Any] = dict(self._properties)
        if self._speculation is None or self._speculation.draft is None:
            if self._speculation is not None:
                properties["prompt_lookup"] = True
            with self._folder() as folder:
                yield folder, properties
            return
        with pipeline_folder(self._model) as folder, pipeline_folder(self._speculation.draft) as draft_folder:
            draft = genai.draft_model(str(draft_folder), self._device, **self._properties)
            yield folder, properties | {"draft_model": draft}

    def _warm_up(self, pipeline: Any) -> None:
        """A full step and a decoding one. The first of each allocates: 470 ms in place of 80 with 0.4B weights."""
        length = max(1, min(self._pool.step_tokens, self._capabilities.context_length - 2))
        prompt = np.zeros((1, length), np.int64)
        settings = self._settings(SamplingParams(max_tokens=2, temperature=0.0))
        self._add_request(pipeline, prompt, settings)
        while pipeline.has_non_finished_requests():
            pipeline.step()

    def _say(self, pipeline: Any, prompts: "np.ndarray") -> list[float]:
        """The likeliest next token of every prompt, and its log probability."""
        settings = self._settings(SamplingParams(max_tokens=1, temperature=0.0, logprobs=0))
        handles = [self._add_request(pipeline, prompt, settings) for prompt in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        outputs = [output for handle in handles for output in handle.read().values()]
        return [number for output in outputs for number in (*output.generated_ids, *output.generated_log_probs)]

    def _admit(self) -> None:
        while self._waiting:
            if self._grammars is not None and self._grammars.used > _MOST_USED:
                return  # what runs comes to its end, then memory is freed
            first = self._waiting[0]
            holding = [*(entry.need for entry in self._running.values()), *self._leaving]
            if holding and (first.restarts or not self._pool.admits(first.need, holding)):
                return  # in order, and what was ignored once runs alone
            self._submit(self._waiting.popleft())

    def _submit(self, entry: Running) -> None:
        sampling = entry.request.sampling
        entry.inherited = len(entry.token_ids)
        again = self._config.deterministic and has_state(sampling) and sampling.grammar is None
        entry.repeated = entry.inherited if again else 0
        given = entry.token_ids[: entry.inherited - entry.repeated]
        settings = self._settings(sampling, given=len(given))
        prompt = np.array([entry.request.prompt_token_ids + given], np.int64)
        entry.handle = self._add_request(self._pipeline, prompt, settings)
        self._running[entry.request.request_id] = entry

    def _settings(self, sampling: SamplingParams, *, given: int = 0) -> dict[str, Any]:
        settings = generation_settings(sampling, given=given, vocab_size=self._model.vocab_size)
        if self._speculation is not None:
            settings |= self._speculation.settings(is_greedy=not settings["do_sample"])
        if self._grammars is not None and sampling.grammar is not None:
            settings |= self._grammars.settings(sampling.grammar, ignore_eos=settings["ignore_eos"])
        return settings

    def _add_request(self, pipeline: Any, prompt: "np.ndarray", settings: dict[str, Any]) -> Any:
        config = genai.GenerationConfig()
        for name, value in settings.items():
            setattr(config, name, value)
        self._next_pipeline_id += 1  # a restarted request is another one to the pipeline
        return pipeline.add_request(self._next_pipeline_id, ov.Tensor(prompt), config)

    def _collect(self, entry: Running) -> TokenDelta | None:
        """What the last step brought `entry`, which leaves the running ones if it is done."""
        request_id, handle = entry.request.request_id, entry.handle
        token_ids: list[int] = []
        logprobs: list[float] = []
        finish_reason: FinishReason | None = None
        while handle.can_read():
            for output in handle.read().values():
                token_ids += output.generated_ids
                logprobs += output.generated_log_probs
                finish_reason = _FINISH_REASONS.get(output.finish_reason)
        if finish_reason == "stop" and entry.is_mark(token_ids[-1]):
            token_ids, logprobs = token_ids[:-1], logprobs[:-1]
        fault = None
        if entry.repeated and token_ids:
            repeated = entry.repeated
            fault = entry.compare(token_ids, ended=finish_reason is not None)
            token_ids, logprobs = token_ids[repeated:], logprobs[repeated:]
        entry.token_ids += token_ids
        status = handle.get_status()
        if fault is not None:
            self.cancel(request_id)
        elif status == genai.GenerationStatus.IGNORED:
            del self._running[request_id]
            fault = self._restart(entry)
        elif status != genai.GenerationStatus.RUNNING:
            del self._running[request_id]
            if finish_reason is None:
                fault = Fault(message=f"The engine ended the request without a reason ({status.name}).")
        if not token_ids and finish_reason is None and fault is None:
            return None
        prompt_logprobs, entry.prompt_logprobs = entry.prompt_logprobs, None
        return TokenDelta(
            request_id=request_id,
            token_ids=token_ids,
            logprobs=entry.logprobs(token_ids, logprobs),
            prompt_logprobs=prompt_logprobs,
            finish_reason=None if fault else finish_reason,
            fault=fault,
        )

    def _restart(self, entry: Running) -> Fault | None:
        """Queue an ignored request again, first in line, with what it has generated as given tokens."""
        entry.restarts += 1
        if entry.restarts > MAX_RESTARTS or not entry.can_restart:
            return Fault(message="The engine ran out of KV cache memory for this request.")
        self._waiting.appendleft(entry)
        return None


def _context_length(config: EngineConfig, model: ModelInfo) -> int:
    if config.context_length is None:
        return model.context_length
    if not 0 < config.context_length <= model.context_length:
        raise ConfigurationError(
            f"A context length of {config.context_length} was asked for, but {model.path.name} was trained for "
            f"{model.context_length}. Give a number from 1 to that, or none."
        )
    return config.context_length
