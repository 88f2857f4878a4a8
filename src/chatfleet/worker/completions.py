"""Completions (the older API): several prompts, token ids, echo, the best of many, a text's middle."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import msgspec

from chatfleet.chat.fim import FillInTheMiddle, fill_in_the_middle, suffix_mark
from chatfleet.chat.text import TokenText, decode
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from chatfleet.engines.base import SamplingParams
from chatfleet.http.streaming import DONE, sse
from chatfleet.protocol.common import FinishReason, Usage
from chatfleet.protocol.completions import Completion, CompletionChoice, CompletionRequest
from chatfleet.worker.completion_logprobs import (
    completion_logprobs,
    joined,
    mean_logprob,
    placed_behind,
    prompt_tokens,
    scored,
)
from chatfleet.worker.generation import ChoiceDelta, Generation
from chatfleet.worker.metrics import COMPLETIONS
from chatfleet.worker.prompt_logprobs import vllm_prompt_logprobs
from chatfleet.worker.recovery import RecoveryLines, Terms
from chatfleet.worker.sampling import (
    COMPLETION_MAX_TOKENS,
    check_choices,
    check_prompt_vocabulary,
    completion_budget,
    requested_top_logprobs,
    sampling_params,
)
from chatfleet.worker.service import WorkerService, answer_identity, off_loop, usage
from chatfleet.worker.structure import Constraint


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt and, where it is echoed, how it shows; `tokens` where their log probabilities do too."""

    token_ids: list[int]
    stop_token_ids: frozenset[int] = frozenset()
    echo: str = ""
    tokens: Sequence[TokenText] = ()


@dataclass(slots=True)
class _Answer:
    """A choice of a whole answer, as it grows; `tokens` are the completion's own."""

    parts: list[CompletionChoice] = field(default_factory=list)
    tokens: list[TokenText] = field(default_factory=list)


class Completions:
    """One request: either `stream` or `whole`. Choices are indexed prompt by prompt, as OpenAI does."""

    def __init__(self, service: WorkerService, request: CompletionRequest, terms: Terms) -> None:
        self._service = service
        self._request = request
        self._terms = terms
        self._model = service.model_name(request.model)
        self.meter = service.metrics.begin(COMPLETIONS)
        self._id, self._created = answer_identity(terms, "cmpl")
        self._n = request.n or 1
        self._generated = request.best_of or self._n
        """Choices that are generated of each prompt, of which the best `_n` are answered."""
        self._max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        self._prompts: list[_Prompt] = []

    async def _start(self) -> Generation:
        """Check, count and start. Raises ServingError."""
        request, service = self._request, self._service
        self._check_best_of()
        prompts = request.prompts()
        many = "best_of" if self._generated > self._n else "n"
        check_choices(len(prompts) * self._generated, "prompt" if len(prompts) > 1 else many)
        constraint = await service.structures.constraint(request, service.capabilities)
        between = await self._between()
        sampling: list[SamplingParams] = []
        for given in prompts:
            prompt = await self._prompt(given) if between is None else await self._prompt_before(given, *between)
            sampling.append(self._sampling(prompt, constraint))
            self._prompts.append(prompt)
        return await service.generate(
            [prompt.token_ids for prompt in self._prompts],
            sampling,
            n=self._generated,
            rules=replace(
                service.text_rules(request, is_parsed=False, is_constrained=constraint is not None), goes_on=True
            ),
            constraint=constraint,
            meter=self.meter,
            terms=self._terms,
        )

    def _check_best_of(self) -> None:
        capabilities = self._service.capabilities
        if self._generated < self._n:
            raise InvalidRequest(
                f"'best_of' is {self._generated}, fewer than the {self._n} choices of 'n': raise it, or lower 'n'.",
                param="best_of",
            )
        if self._generated == self._n:
            return
        if self._request.stream:
            raise InvalidRequest(
                "'best_of' is chosen from whole answers, so that it cannot be streamed: leave out 'stream', or "
                "'best_of'.",
                param="best_of",
            )
        if "logprobs" not in capabilities.parameters:
            raise UnsupportedParameter(
                f"The engine {capabilities.engine!r} gives no log probabilities, which 'best_of' chooses by.",
                param="best_of",
            )

    async def _between(self) -> tuple[FillInTheMiddle, list[int]] | None:
        """How to ask for what stands before the suffix, and the suffix; None where there is none, or an empty one.
        Raises UnsupportedParameter."""
        request, tokenizer = self._request, self._service.model.tokenizer
        if not request.suffix:
            return None
        middle = fill_in_the_middle(tokenizer)
        if middle is None:
            raise UnsupportedParameter(
                f"The model `{self._model}` cannot fill in the middle: its vocabulary has no tokens for it that are "
                "known here. Leave 'suffix' out, or serve a model that was trained for it.",
                param="suffix",
            )
        if request.echo:
            raise InvalidRequest("'suffix' and 'echo' do not go together: leave one of them out.", param="suffix")
        mark, mark_tokens = suffix_mark(tokenizer)
        suffix = await self._service.encode_bounded(mark + request.suffix, "suffix", add_special_tokens=False)
        return middle, suffix[mark_tokens:]

    async def _prompt_before(self, given: str | list[int], middle: FillInTheMiddle, suffix: Sequence[int]) -> _Prompt:
        service = self._service
        prefix = given
        if isinstance(prefix, str):
            prefix = await service.encode_bounded(prefix, "prompt", add_special_tokens=False)
        bos = service.model.tokenizer.encode("", add_special_tokens=True)
        token_ids = middle.prompt(bos, prefix, suffix)
        check_prompt_vocabulary(token_ids, "prompt", service.capabilities)
        return _Prompt(token_ids, middle.stop_token_ids)

    async def _prompt(self, given: str | list[int]) -> _Prompt:
        request, service = self._request, self._service
        tokenizer = service.model.tokenizer
        token_ids = await service.encode_prompt(given, "prompt")
        check_prompt_vocabulary(token_ids, "prompt", service.capabilities)
        if not request.echo:
            return _Prompt(token_ids)
        shows_control = request.skip_special_tokens is False and not isinstance(given, str)
        echo = given if isinstance(given, str) else decode(tokenizer, given, shows_control=shows_control)
        if request.logprobs is None:
            return _Prompt(token_ids, echo=echo)
        tokens = await off_loop(
            len(token_ids), lambda: prompt_tokens(tokenizer, echo, token_ids, shows_control=shows_control)
        )
        return _Prompt(token_ids, echo=echo, tokens=tokens)

    def _sampling(self, prompt: _Prompt, constraint: Constraint | None) -> SamplingParams:
        request, capabilities = self._request, self._service.capabilities
        scores_prompt = request.prompt_logprobs is not None or (bool(request.echo) and request.logprobs is not None)
        least = 0 if scores_prompt else 1  # one is generated and dropped, where there is nothing else to compute
        budget = completion_budget(
            prompt_tokens=len(prompt.token_ids),
            max_tokens=max(self._max_tokens, least),
            context_length=capabilities.context_length,
            param="prompt",
        )
        wanted = [
            requested_top_logprobs(request.logprobs, "logprobs", capabilities),
            requested_top_logprobs(request.prompt_logprobs, "prompt_logprobs", capabilities),
            0 if self._generated > self._n else None,
        ]
        sampling = sampling_params(
            request,
            max_tokens=budget,
            logprobs=max((top for top in wanted if top is not None), default=None),
            prompt_logprobs=scores_prompt,
            constraint=constraint,
            tokenizer=self._service.model.tokenizer,
            capabilities=capabilities,
        )
        if request.ignore_eos or not prompt.stop_token_ids:
            return sampling
        ends = prompt.stop_token_ids.union(sampling.stop_token_ids)
        return msgspec.structs.replace(sampling, stop_token_ids=tuple(sorted(ends)))

    async def whole(self) -> Completion:
        """The answer in one piece. Cancelling it ends the generation."""
        async with aclosing(await self._start()) as generation:
            answers = [_Answer() for _ in range(len(self._prompts) * self._generated)]
            async for delta in generation:
                answer = answers[delta.index]
                answer.parts.append(self._choice(delta, first=not answer.parts))
                answer.tokens += delta.tokens
        choices = [_joined(index, answer.parts) for index, answer in enumerate(self._best(answers))]
        return self._completion(choices, self._usage(generation))

    def _best(self, answers: Sequence[_Answer]) -> list[_Answer]:
        """The answers to give: of each prompt's the likeliest per token, best first."""
        if self._generated == self._n:
            return list(answers)
        best: list[_Answer] = []
        for start in range(0, len(answers), self._generated):
            of_prompt = answers[start : start + self._generated]
            best += sorted(of_prompt, key=lambda answer: mean_logprob(answer.tokens), reverse=True)[: self._n]
        return best

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events. Closing it ends the generation."""
        include_usage = self._request.includes_usage()
        started = self._terms.begun_choices()
        lines = RecoveryLines(self._id, self._created) if self._terms.recoverable else None
        async with aclosing(await self._start()) as generation:
            async for delta in generation:
                choice = self._choice(delta, first=delta.index not in started)
                started.add(delta.index)
                if lines is not None and self._max_tokens > 0:
                    lines.consumed(delta.index, delta.token_ids, delta.held, delta.unfinished)
                if choice.text or choice.logprobs or choice.finish_reason or choice.token_ids:
                    event = sse(self._completion([choice], None, with_usage=include_usage).to_json())
                    yield event if lines is None else lines.of_choice(delta.index, choice.finish_reason) + event
        if include_usage:
            event = sse(self._completion([], self._usage(generation)).to_json())
            yield event if lines is None else lines.of_usage() + event
        yield DONE if lines is None else lines.of_end() + DONE

    def _choice(self, delta: ChoiceDelta, *, first: bool) -> CompletionChoice:
        request, tokenizer = self._request, self._service.model.tokenizer
        text, tokens, finish_reason, token_ids = delta.text, delta.tokens, delta.finish_reason, delta.token_ids
        if self._max_tokens == 0:
            text, tokens, finish_reason, token_ids = "", [], "length", ()
        prompt = self._prompts[delta.index // self._generated]
        shown = placed_behind(tokens, len(prompt.echo))
        if first:
            text = prompt.echo + text
            if delta.prompt_logprobs is not None and prompt.tokens:
                shown = scored(prompt.tokens, delta.prompt_logprobs) + shown
        logprobs = None
        if request.logprobs is not None and shown:
            logprobs = completion_logprobs(shown, tokenizer, request.logprobs)
        choice = CompletionChoice(index=delta.index, text=text, logprobs=logprobs, finish_reason=finish_reason)
        if request.return_token_ids:
            choice.token_ids = list(token_ids)
            if first:
                choice.prompt_token_ids = prompt.token_ids
        if request.prompt_logprobs is not None and delta.prompt_logprobs is not None:
            choice.prompt_logprobs = vllm_prompt_logprobs(delta.prompt_logprobs, tokenizer, request.prompt_logprobs)
        return choice

    def _usage(self, generation: Generation) -> Usage:
        if self._max_tokens == 0:
            generation.completion_tokens = 0
        return usage(generation)

    def _completion(
        self, choices: list[CompletionChoice], final_usage: Usage | None, *, with_usage: bool = False
    ) -> Completion:
        completion = Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
            system_fingerprint=self._service.fingerprint,
        )
        if with_usage or final_usage is not None:
            completion.usage = final_usage
        return completion


def _joined(index: int, parts: Sequence[CompletionChoice]) -> CompletionChoice:
    """One choice out of its deltas, in its place. What comes but once is in the first of them."""
    reasons: list[FinishReason] = [part.finish_reason for part in parts if part.finish_reason is not None]
    whole = parts[0].model_copy(update={"index": index, "finish_reason": reasons[-1]})
    whole.text = "".join(part.text for part in parts)
    whole.logprobs = joined([part.logprobs for part in parts if part.logprobs is not None])
    if whole.token_ids is not None:
        whole.token_ids = [token_id for part in parts for token_id in part.token_ids or ()]
    return whole
