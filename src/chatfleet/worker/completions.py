"""Completions (the older API): several prompts, token ids, echo."""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from chatfleet.chat.text import IncrementalText, Logprob, TokenText, decode
from chatfleet.engines.base import SamplingParams, TokenLogprobs
from chatfleet.http.streaming import DONE, sse
from chatfleet.protocol.common import FinishReason, Usage
from chatfleet.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from chatfleet.worker.generation import ChoiceDelta, Generation
from chatfleet.worker.metrics import COMPLETIONS
from chatfleet.worker.recovery import RecoveryLines, Terms
from chatfleet.worker.sampling import (
    COMPLETION_MAX_TOKENS,
    check_choices,
    check_prompt_vocabulary,
    completion_budget,
    refuse_unsupported_completion,
    requested_top_logprobs,
    sampling_params,
)
from chatfleet.worker.service import WorkerService, answer_identity, usage


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
        self._max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        self._prompts: list[list[int]] = []
        self._echoes: list[str] = []

    async def _start(self) -> Generation:
        """Check, count and start. Raises ServingError."""
        request, service = self._request, self._service
        refuse_unsupported_completion(request)
        prompts = request.prompts()
        check_choices(len(prompts) * self._n, "prompt" if len(prompts) > 1 else "n")
        sampling: list[SamplingParams] = []
        for prompt in prompts:
            token_ids = await service.encode_prompt(prompt, "prompt")
            check_prompt_vocabulary(token_ids, "prompt", service.capabilities)
            sampling.append(self._sampling(token_ids))
            self._prompts.append(token_ids)
            if request.echo:
                text = prompt if isinstance(prompt, str) else decode(service.model.tokenizer, prompt)
                self._echoes.append(text)
        stops = request.stop_strings()
        return await service.generate(
            self._prompts, sampling, n=self._n, stops=stops, meter=self.meter, terms=self._terms
        )

    def _sampling(self, prompt_token_ids: list[int]) -> SamplingParams:
        request, service = self._request, self._service
        echoes_logprobs = bool(request.echo) and request.logprobs is not None
        least = 0 if echoes_logprobs else 1  # one is generated and dropped, where there is nothing else to compute
        budget = completion_budget(
            prompt_tokens=len(prompt_token_ids),
            max_tokens=max(self._max_tokens, least),
            context_length=service.capabilities.context_length,
            param="prompt",
        )
        return sampling_params(
            request,
            max_tokens=budget,
            logprobs=requested_top_logprobs(request.logprobs, "logprobs", service.capabilities),
            prompt_logprobs=echoes_logprobs,
            tokenizer=service.model.tokenizer,
            capabilities=service.capabilities,
        )

    async def whole(self) -> Completion:
        """The answer in one piece. Cancelling it ends the generation."""
        async with aclosing(await self._start()) as generation:
            parts: list[list[CompletionChoice]] = [[] for _ in range(len(self._prompts) * self._n)]
            async for delta in generation:
                parts[delta.index].append(self._choice(delta, first=not parts[delta.index]))
        return self._completion([_joined(choices) for choices in parts], self._usage(generation))

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
                    lines.consumed(delta.index, delta.token_ids, delta.held)
                if choice.text or choice.logprobs or choice.finish_reason:
                    event = sse(self._completion([choice], None, with_usage=include_usage).to_json())
                    yield event if lines is None else lines.of_choice(delta.index, choice.finish_reason) + event
        if include_usage:
            event = sse(self._completion([], self._usage(generation)).to_json())
            yield event if lines is None else lines.of_usage() + event
        yield DONE if lines is None else lines.of_end() + DONE

    def _choice(self, delta: ChoiceDelta, *, first: bool) -> CompletionChoice:
        text, tokens, finish_reason = delta.text, delta.tokens, delta.finish_reason
        if self._max_tokens == 0:
            text, tokens, finish_reason = "", [], "length"
        prompt = delta.index // self._n
        base = len(self._echoes[prompt]) if self._echoes else 0
        echoed: list[TokenText] = []
        if first and self._echoes:
            text = self._echoes[prompt] + text
            if delta.prompt_logprobs is not None:
                echoed = self._echoed_tokens(self._prompts[prompt], delta.prompt_logprobs)
        logprobs = None
        if self._request.logprobs is not None and (echoed or tokens):
            logprobs = self._logprobs([*((0, token) for token in echoed), *((base, token) for token in tokens)])
        return CompletionChoice(index=delta.index, text=text, logprobs=logprobs, finish_reason=finish_reason)

    def _echoed_tokens(self, token_ids: list[int], logprobs: Sequence[TokenLogprobs | None]) -> list[TokenText]:
        """The prompt's tokens; the first has nothing before it, so its log probability is NaN here."""
        text = IncrementalText(self._service.model.tokenizer)
        entries = [Logprob(math.nan) if p is None else Logprob(p.logprob, p.top) for p in logprobs]
        return text.feed(token_ids, entries).tokens + text.finish().tokens

    def _logprobs(self, placed: Sequence[tuple[int, TokenText]]) -> CompletionLogprobs:
        top_logprobs = None
        if self._request.logprobs:
            top_logprobs = [self._top(token) for _, token in placed]
        return CompletionLogprobs(
            text_offset=[base + token.offset for base, token in placed],
            token_logprobs=[None if math.isnan(token.logprob) else token.logprob for _, token in placed],
            tokens=[token.text for _, token in placed],
            top_logprobs=top_logprobs,
        )

    def _top(self, token: TokenText) -> dict[str, float] | None:
        if math.isnan(token.logprob):
            return None
        token_bytes = self._service.model.tokenizer.token_bytes
        alternatives = {token_bytes(i).decode("utf-8", "replace"): logprob for i, logprob in token.top}
        return {**alternatives, token.text: token.logprob}

    def _usage(self, generation: Generation) -> Usage:
        if self._max_tokens == 0:
            generation.completion_tokens = 0
        return usage(generation)

    def _completion(
        self, choices: list[CompletionChoice], final_usage: Usage | None, *, with_usage: bool = False
    ) -> Completion:
        completion = Completion(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )
        if with_usage or final_usage is not None:
            completion.usage = final_usage
        return completion


def _joined(parts: Sequence[CompletionChoice]) -> CompletionChoice:
    """One choice out of its deltas."""
    reasons: list[FinishReason] = [part.finish_reason for part in parts if part.finish_reason is not None]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    joined = None
    if logprobs:
        tops = [top for part in logprobs for top in part.top_logprobs or ()]
        joined = CompletionLogprobs(
            text_offset=[offset for part in logprobs for offset in part.text_offset],
            token_logprobs=[logprob for part in logprobs for logprob in part.token_logprobs],
            tokens=[token for part in logprobs for token in part.tokens],
            top_logprobs=None if logprobs[0].top_logprobs is None else tops,
        )
    return CompletionChoice(
        index=parts[0].index,
        text="".join(part.text for part in parts),
        logprobs=joined,
        finish_reason=reasons[-1],
    )
