"""Chat completions: from the request to chunks or one answer."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chatfleet.chat.text import TokenText
from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.http.streaming import DONE, sse
from chatfleet.protocol.chat import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    TokenLogprob,
    TopLogprob,
)
from chatfleet.protocol.common import FinishReason, Usage
from chatfleet.worker.generation import ChoiceDelta, Generation
from chatfleet.worker.metrics import CHAT
from chatfleet.worker.recovery import RecoveryLines, Terms
from chatfleet.worker.sampling import (
    check_choices,
    completion_budget,
    refuse_unsupported_chat,
    requested_top_logprobs,
    sampling_params,
)
from chatfleet.worker.service import WorkerService, answer_identity, usage


@dataclass(slots=True)
class _Answer:
    """One choice of a whole answer, as it grows."""

    text: list[str]
    tokens: list[TokenText]
    finish_reason: FinishReason = "stop"


class ChatCompletions:
    """One request. `prepare` does all that can be refused; then either `stream` or `whole`."""

    def __init__(self, service: WorkerService, request: ChatCompletionRequest, terms: Terms) -> None:
        self._service = service
        self._request = request
        self._terms = terms
        self._model = service.model_name(request.model)
        self.meter = service.metrics.begin(CHAT)
        self._id, self._created = answer_identity(terms, "chatcmpl")
        self._lines = RecoveryLines(self._id, self._created) if terms.recoverable else None

    async def _start(self) -> Generation:
        """Check, render, count and start. Raises ServingError."""
        request, service = self._request, self._service
        refuse_unsupported_chat(request)
        n = request.n or 1
        check_choices(n, "n")
        tools = None if request.tool_choice == "none" else request.tools
        prompt = await service.render(request.messages, tools, variables=request.chat_template_kwargs)
        prompt_token_ids = await service.encode_bounded(prompt, "messages", add_special_tokens=False)
        capabilities = service.capabilities
        max_tokens = completion_budget(
            prompt_tokens=len(prompt_token_ids),
            max_tokens=request.max_completion_tokens or request.max_tokens,
            context_length=capabilities.context_length,
            param="messages",
        )
        wanted = (request.top_logprobs or 0) if request.logprobs else None
        sampling = sampling_params(
            request,
            max_tokens=max_tokens,
            logprobs=requested_top_logprobs(wanted, "top_logprobs", capabilities),
            prompt_logprobs=False,
            tokenizer=service.model.tokenizer,
            capabilities=capabilities,
        )
        return await service.generate(
            [prompt_token_ids], [sampling], n=n, stops=request.stop_strings(), meter=self.meter, terms=self._terms
        )

    async def whole(self) -> ChatCompletion:
        """The answer in one piece. Cancelling it ends the generation."""
        answers = [_Answer([], []) for _ in range(self._request.n or 1)]
        async with aclosing(await self._start()) as generation:
            async for delta in generation:
                answer = answers[delta.index]
                answer.text.append(delta.text)
                answer.tokens += delta.tokens
                answer.finish_reason = delta.finish_reason or answer.finish_reason
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(role="assistant", content="".join(answer.text), refusal=None),
                    logprobs=self._logprobs(answer.tokens),
                    finish_reason=answer.finish_reason,
                )
                for index, answer in enumerate(answers)
            ],
            usage=usage(generation),
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events. Closing it ends the generation."""
        include_usage = self._request.includes_usage()
        started = self._terms.begun_choices()
        lines = self._lines
        async with aclosing(await self._start()) as generation:
            async for delta in generation:
                events = b""
                if delta.index not in started:
                    started.add(delta.index)
                    opening = Delta(role="assistant", content="", refusal=None)
                    events = self._event(
                        ChunkChoice(index=delta.index, delta=opening, logprobs=None, finish_reason=None)
                    )
                if lines is not None:
                    lines.consumed(delta.index, delta.token_ids, delta.held)
                events += self._delta_events(delta)
                if events:
                    yield events
        if include_usage:
            yield self._event(None, usage(generation))
        yield DONE if lines is None else lines.of_end() + DONE

    def _delta_events(self, delta: ChoiceDelta) -> bytes:
        events = b""
        if delta.text or delta.tokens:
            events = self._event(
                ChunkChoice(
                    index=delta.index,
                    delta=Delta(content=delta.text),
                    logprobs=self._logprobs(delta.tokens),
                    finish_reason=None,
                )
            )
        if delta.finish_reason is not None:
            events += self._event(
                ChunkChoice(index=delta.index, delta=Delta(), logprobs=None, finish_reason=delta.finish_reason)
            )
        return events

    def _event(self, choice: ChunkChoice | None, final_usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=[] if choice is None else [choice],
        )
        if self._request.includes_usage():
            chunk.usage = final_usage
        event = sse(chunk.to_json())
        if self._lines is None:
            return event
        if choice is None:
            return self._lines.of_usage() + event
        return self._lines.of_choice(choice.index, choice.finish_reason) + event

    def _logprobs(self, tokens: Sequence[TokenText]) -> ChoiceLogprobs | None:
        if not self._request.logprobs:
            return None
        tokenizer = self._service.model.tokenizer
        return ChoiceLogprobs(content=[token_logprob(token, tokenizer) for token in tokens], refusal=None)


def token_logprob(token: TokenText, tokenizer: Tokenizer) -> TokenLogprob:
    return TokenLogprob(
        token=token.text,
        logprob=token.logprob,
        bytes=list(token.bytes),
        top_logprobs=[_top_logprob(tokenizer.token_bytes(i), logprob) for i, logprob in token.top],
    )


def _top_logprob(data: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))
