"""The forward pass of a step: tokens of many sequences in, logits out.

Two ways. `PagedRunner` computes all rows of a step in one pass, over pages of keys and values; it needs a model whose
attention goes through transformers' attention interface. `SingleRunner` gives every sequence a cache of its own, of
the kind the model wants, and a pass of its own: for models with state that is not keys and values (hybrids), or with
attention code of their own. `make_runner` takes the first where it gives the logits that transformers gives, else the
second, else refuses the model by name.
"""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import GenerateRequest, SamplingParams
from chatfleet.engines.transformers import fused
from chatfleet.engines.transformers.attention import (
    LayerShape,
    PagedCache,
    Step,
    UnsupportedAttention,
    attention_over,
    lay_out,
    layer_mask,
)
from chatfleet.engines.transformers.graphs import CudaRecorder, Record, RecordedSteps
from chatfleet.engines.transformers.linear import pack_linears
from chatfleet.engines.transformers.loading import LoadedModel
from chatfleet.engines.transformers.sampling import RowState
from chatfleet.engines.transformers.scheduler import Part, Running

logger = logging.getLogger(__name__)

EXACT_ROWS: Final = 64
"""Rows of every step under --deterministic: products give a row the same bits whatever the others are, as long as
there are always as many."""

_PROBE_TOKENS: Final = 24


class StepLogits(NamedTuple):
    """`rows` [sequences, vocabulary] are behind each of `sequences`, whose next token can be drawn. `prompts` are
    those of the parts that want log probabilities of their prompt: [tokens, vocabulary], of each token's successor."""

    sequences: list[Running]
    rows: torch.Tensor
    prompts: list[tuple[Part, torch.Tensor]]


class Runner(ABC):
    """`whole_prompts`: prompts cannot be read in parts. `layers` are the keys and values of a token."""

    whole_prompts = False
    is_batched: bool
    layers: Sequence[LayerShape]

    @abstractmethod
    def allocate(self, pages: int, page_tokens: int) -> None:
        """Make the KV cache, empty."""

    @abstractmethod
    def run(self, parts: Sequence[Part]) -> StepLogits:
        """Compute the parts, in any order, and keep their state."""

    @abstractmethod
    def hidden_states(self, part: Part) -> torch.Tensor:
        """The same of one part, but the model's last hidden states [tokens, hidden_size]."""

    @abstractmethod
    def wipe(self, pages: Sequence[int]) -> None:
        """Remove what pages hold: numbers that are not finite would reach those that get them next."""


def wants_logits(part: Part) -> range:
    """The positions of a part whose logits are needed: the last token's, and those before tokens of a prompt whose log
    probabilities are wanted."""
    sequence = part.sequence
    if sequence.request.sampling.prompt_logprobs and part.start < sequence.prompt_tokens - 1:
        end = min(part.end, sequence.prompt_tokens - 1)
        return range(part.start, part.end if part.is_last else end)
    return range(part.end - 1, part.end) if part.is_last else range(0)


def _sorted_out(parts: Sequence[Part], logits: torch.Tensor) -> StepLogits:
    """`logits` are those of all wanted positions, part after part."""
    sequences: list[Running] = []
    rows: list[int] = []
    prompts: list[tuple[Part, torch.Tensor]] = []
    at = 0
    for part in parts:
        wanted = wants_logits(part)
        in_prompt = len(wanted) - (1 if part.is_last else 0)
        if in_prompt:
            prompts.append((part, logits[at : at + in_prompt]))
        at += len(wanted)
        if part.is_last:
            sequences.append(part.sequence)
            rows.append(at - 1)
    if len(rows) != len(logits):
        logits = logits[torch.tensor(rows, dtype=torch.long, device=logits.device)]
    return StepLogits(sequences, logits, prompts)


class PagedRunner(Runner):
    """One pass for all rows. `exact` makes each row's result independent of the others. With `record` steps of one row
    a sequence are recorded and replayed."""

    is_batched = True

    def __init__(
        self, loaded: LoadedModel, layers: Sequence[LayerShape], *, exact: bool, record: Record | None = None
    ) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._exact = exact
        self._spans_devices = len({layer.device for layer in layers}) > 1
        self.layers = layers
        self._record = record
        self._page_tokens = 1
        self._cache: PagedCache | None = None
        self._recorded: RecordedSteps | None = None
        name = f"chatfleet_{id(self)}"  # transformers knows attention by names that hold for the whole process
        AttentionInterface.register(name, attention_over(lambda: self._held))
        AttentionMaskInterface.register(name, layer_mask)
        self._model.set_attn_implementation(name)

    @property
    def _held(self) -> PagedCache:
        assert self._cache is not None
        return self._cache

    def allocate(self, pages: int, page_tokens: int) -> None:
        if self._cache is not None:
            self._cache.free()  # before the new one: there may not be room for both
        self._cache = self._recorded = None
        self._page_tokens = page_tokens
        self._cache = PagedCache(self.layers, pages, page_tokens)
        if self._record is not None:
            self._recorded = RecordedSteps(self._forward, self._record, page_tokens, self._device)

    def run(self, parts: Sequence[Part]) -> StepLogits:
        if self._recorded is not None and all(part.is_last for part in parts):
            logits = self._recorded.run(parts)
            if logits is not None:
                return StepLogits([part.sequence for part in parts], logits, [])
        ordered, step, token_ids = self._lay_out(parts)
        wanted: list[int] = []
        row = 0
        for part in ordered:
            wanted += [row + position - part.start for position in wants_logits(part)]
            row += part.end - part.start
        rows = torch.tensor(wanted, dtype=torch.long, device=self._device)
        if self._exact or self._spans_devices:
            logits = self._forward(step, token_ids)
            return _sorted_out(ordered, logits[rows.to(logits.device)].to(self._device))
        return _sorted_out(ordered, self._forward(step, token_ids, logits_to_keep=rows))

    def hidden_states(self, part: Part) -> torch.Tensor:
        _, step, token_ids = self._lay_out([part])
        output = self._model.base_model(**self._arguments(step, token_ids))
        hidden: torch.Tensor = output.last_hidden_state[0, : part.end - part.start]
        return hidden

    def fuse_layers(self) -> None:
        """Compute with larger operations where that gives the same. Needs a cache of two pages."""
        rows = fused.TRIAL_ROWS
        sequence = trial_sequence([0] * rows)
        self._page_tokens = max(self._page_tokens, rows)
        self._cache = PagedCache(self.layers, 2, self._page_tokens)
        sequence.pages = [1]
        _, step = lay_out([Part(sequence, 0, rows)], self._page_tokens, self._device)
        self._cache.begin(step)
        count = fused.fuse_layers(self._model.base_model, self._cache)
        if count:
            logger.info("%d layers fused", count)

    def wipe(self, pages: Sequence[int]) -> None:
        self._held.wipe(pages)

    def _lay_out(self, parts: Sequence[Part]) -> tuple[list[Part], Step, torch.Tensor]:
        pad_to = EXACT_ROWS if self._exact else 0
        ordered, step = lay_out(parts, self._page_tokens, self._device, pad_to=pad_to)
        token_ids = [token_id for part in ordered for token_id in part.sequence.token_ids[part.start : part.end]]
        token_ids += [0] * (pad_to - len(token_ids))
        return ordered, step, torch.tensor([token_ids], device=self._device)

    def _forward(self, step: Step, token_ids: torch.Tensor, **keep: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary], of all rows or of those to keep."""
        logits: torch.Tensor = self._model(**self._arguments(step, token_ids), **keep).logits[0]
        return logits

    def _arguments(self, step: Step, token_ids: torch.Tensor) -> dict[str, Any]:
        self._held.begin(step)
        return {
            "input_ids": token_ids,
            "position_ids": step.positions[None],
            "past_key_values": self._held,
            "use_cache": True,
        }


class SingleRunner(Runner):
    """A cache and a pass for each sequence."""

    is_batched = False

    def __init__(self, loaded: LoadedModel, layers: Sequence[LayerShape], *, whole_prompts: bool) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self.layers = layers
        self.whole_prompts = whole_prompts
        self._caches: WeakKeyDictionary[Running, Any] = WeakKeyDictionary()
        self._accepted = _accepted(self._model)

    def allocate(self, pages: int, page_tokens: int) -> None:
        self._caches = WeakKeyDictionary()

    def run(self, parts: Sequence[Part]) -> StepLogits:
        for sequence in [sequence for sequence in self._caches if not sequence.pages]:
            del self._caches[sequence]  # preempted: it begins anew
        return _sorted_out(parts, torch.cat([self._logits(part) for part in parts]))

    def _logits(self, part: Part) -> torch.Tensor:
        """Of the wanted positions of a part."""
        rows = torch.tensor([position - part.start for position in wants_logits(part)], dtype=torch.long)
        if "logits_to_keep" in self._accepted:
            kept: torch.Tensor = self._forward(self._model, part, logits_to_keep=rows.to(self._device)).logits[0]
            return kept
        logits: torch.Tensor = self._forward(self._model, part).logits[0]
        return logits[rows.to(logits.device)]

    def hidden_states(self, part: Part) -> torch.Tensor:
        hidden: torch.Tensor = self._forward(self._model.base_model, part).last_hidden_state[0]
        return hidden

    def wipe(self, pages: Sequence[int]) -> None:
        """Every sequence has a cache of its own, which goes with it."""

    def _forward(self, model: torch.nn.Module, part: Part, **keep: torch.Tensor) -> Any:
        sequence = part.sequence
        if part.start == 0:
            self._caches[sequence] = DynamicCache(config=self._model.config)
        positions = torch.arange(part.start, part.end, device=self._device)
        arguments = {
            "input_ids": torch.tensor([sequence.token_ids[part.start : part.end]], device=self._device),
            "past_key_values": self._caches[sequence],
            "use_cache": True,
        }
        if "position_ids" in self._accepted:
            arguments["position_ids"] = positions[None]
        return model(**arguments, **keep)


def _accepted(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def make_runner(loaded: LoadedModel, *, exact: bool) -> Runner:
    """The runner for a model, shown to give what transformers gives.

    Raises ConfigurationError, naming the model's type, where there is none.
    """
    trials = [
        [1 + (37 * index + 11 * number) % (loaded.vocab_size - 1) for index in range(_PROBE_TOKENS)]
        for number in range(2)
    ]
    if "past_key_values" not in _accepted(loaded.model):
        raise _refusal(loaded, "it keeps its state in no cache that transformers' Cache knows")
    expected: list[torch.Tensor] = []
    for token_ids in trials:
        cache = DynamicCache(config=loaded.model.config)
        input_ids = torch.tensor([token_ids], device=loaded.device)
        try:
            expected.append(loaded.model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits[0, -1])
        except Exception as exc:
            logger.info("the model's own run failed", exc_info=exc)
            raise _refusal(loaded, f"a run of it failed ({_first_line(exc)})") from exc
    layers = [_layer_shape(layer) for layer in cache.layers]
    shapes = [shape for shape in layers if shape is not None]
    reason = _not_batchable(loaded, layers)
    implementation = loaded.model.config._attn_implementation
    packed = pack_linears(loaded.model)
    if packed:
        logger.info("%d linear layers packed for oneDNN", packed)
    if reason is None:
        record = CudaRecorder(loaded.device) if _can_record(loaded, shapes) and not exact else None
        paged = PagedRunner(loaded, shapes, exact=exact, record=record)
        reason = _difference(paged, trials, expected)
        if reason is None:
            paged.fuse_layers()
            return paged
        loaded.model.set_attn_implementation(implementation)
    single = SingleRunner(loaded, shapes, whole_prompts=len(shapes) < len(layers))
    difference = _difference(single, trials, expected)
    if difference is not None:
        raise _refusal(loaded, difference)
    logger.warning("%s models are computed one sequence at a time, not batched: %s", loaded.model_type, reason)
    return single


def _can_record(loaded: LoadedModel, layers: Sequence[LayerShape]) -> bool:
    return loaded.device.type == "cuda" and all(layer.device == loaded.device for layer in layers)


def _refusal(loaded: LoadedModel, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The transformers engine does not serve models of type {loaded.model_type!r}: {reason}. Serve {loaded.name} "
        "with a server that knows it (vLLM, SGLang, llama.cpp), and register that: chatfleet register URL."
    )


def _layer_shape(layer: Any) -> LayerShape | None:
    """None for a layer whose state is not only keys and values."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or getattr(layer, "conv_states", None) is not None:
        return None
    return LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.device, keys.dtype)


def _not_batchable(loaded: LoadedModel, layers: Sequence[LayerShape | None]) -> str | None:
    accepted = _accepted(loaded.model)
    text = loaded.model.config.get_text_config()
    if None in layers:
        return "some of their layers have other state than keys and values"
    if not loaded.model._can_set_attn_implementation():
        return "their attention does not go through transformers' attention interface"
    if not {"position_ids", "logits_to_keep"} <= accepted:
        return "their forward pass takes no position_ids or logits_to_keep"
    if getattr(text, "alibi", False):
        return "their attention scores depend on distances (ALiBi)"
    if getattr(text, "attn_temperature_tuning", False):
        return "their attention depends on how long the cache says that the text is"
    return None


def _difference(runner: Runner, trials: Sequence[list[int]], expected: Sequence[torch.Tensor]) -> str | None:
    """Why `runner` does not give the logits `expected` [vocabulary] behind each of two trials; None where it does.

    They are computed beside each other, one read in parts, and both token by token at the end: neither may be
    changed by the other.
    """
    count = len(trials[0])
    page_tokens = 8
    first, second = sequences = [trial_sequence(token_ids[:-2], number) for number, token_ids in enumerate(trials)]
    pages = -(-count // page_tokens)
    first.pages = list(range(1, 1 + pages))
    second.pages = list(range(1 + pages, 1 + 2 * pages))
    half = count - 2 if runner.whole_prompts else count // 2
    try:
        runner.allocate(1 + 2 * pages, page_tokens)
        runner.run([Part(first, 0, half), Part(second, 0, count - 2)])
        if half < count - 2:
            runner.run([Part(first, half, count - 2)])
        for end in (count - 1, count):
            for sequence, token_ids in zip(sequences, trials, strict=True):
                sequence.token_ids = token_ids[:end]
            logits = runner.run([Part(sequence, end - 1, end) for sequence in sequences])
    except UnsupportedAttention as exc:
        return f"their attention wants {exc}"
    except Exception as exc:
        logger.info("the trial run failed", exc_info=exc)
        return f"a trial run failed ({_first_line(exc)})"
    for sequence, row in zip(logits.sequences, logits.rows, strict=True):
        wanted = expected[sequence.request_id].float()
        allowed = (1e-3 if row.dtype == torch.float32 else 0.1) * float(wanted.abs().max())
        error = float((row.float() - wanted).abs().max())
        if not error <= allowed:
            return f"a trial run gave other logits than transformers' own (by {error:.3g})"
    return None


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"


def trial_sequence(token_ids: list[int], number: int = 0) -> Running:
    """A sequence that is of no request."""
    request = GenerateRequest(request_id=number, prompt_token_ids=token_ids, sampling=SamplingParams(max_tokens=1))
    return Running(request, RowState(request.sampling, token_ids, []), list(token_ids))
