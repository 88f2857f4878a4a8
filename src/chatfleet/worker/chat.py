"""Chat completions: from the request to chunks or one answer."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from chatfleet.chat.formats import make_parser
from chatfleet.chat.messages import message_text
from chatfleet.chat.text import IncrementalText, TextRules, TokenText
from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.core.errors import InvalidRequest
from chatfleet.http.streaming import DONE, sse
from chatfleet.protocol.chat import (
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
from chatfleet.protocol.common import Usage
from chatfleet.worker.generation import ChoiceDelta, Generation
from chatfleet.worker.metrics import CHAT
from chatfleet.worker.prompt_logprobs import vllm_prompt_logprobs
from chatfleet.worker.reading import ChoiceReader
from chatfleet.worker.recovery import RecoveryLines, Terms
from chatfleet.worker.sampling import (
    check_choices,
    completion_budget,
    refuse_unsupported_chat,
    requested_top_logprobs,
    sampling_params,
)
from chatfleet.worker.service import WorkerService, answer_identity, off_loop, usage
from chatfleet.worker.tool_choice import NO_TOOLS, ToolPlan, plan_tools, refuse_without_format


class ChatCompletions:
    """One request. `_start` does all that can be refused; then either `stream` or `whole`."""

    def __init__(self, service: WorkerService, request: ChatCompletionRequest, terms: Terms) -> None:
        self._service = service
        self._request = request
        self._terms = terms
        self._model = service.model_name(request.model)
        self.meter = service.metrics.begin(CHAT)
        self._id, self._created = answer_identity(terms, "chatcmpl")
        self._lines = RecoveryLines(self._id, self._created) if terms.recoverable else None
        self._readers: list[ChoiceReader] = []
        self._prompt_token_ids: list[int] = []

    async def _start(self) -> Generation:
        """Check, render, count and start. Raises ServingError."""
        request, service = self._request, self._service
        refuse_unsupported_chat(request, is_in_fleet=service.is_in_fleet)
        n = request.n or 1
        check_choices(n, "n")
        plan = plan_tools(request)
        formats = service.model.formats
        if plan.tools and formats.tools is None and (formats.parses_tools or plan.is_enforced):
            refuse_without_format(plan)
        prompt = await self._render(plan)
        token_ids = self._prompt_token_ids = await service.encode_bounded(prompt, "messages", add_special_tokens=False)
        capabilities = service.capabilities
        tools = formats.tools if plan.tools else None
        final = request.messages[-1]
        continues = request.continue_final_message and final.role == "assistant"
        continued = message_text(final, "messages") if continues else ""
        opened = formats.reasoning is not None and formats.reasoning.opens_reasoning(prompt, continued=continued)
        max_tokens = completion_budget(
            prompt_tokens=len(token_ids),
            max_tokens=request.max_completion_tokens or request.max_tokens,
            context_length=capabilities.context_length,
            param="messages",
        )
        constraint = await service.structures.constraint(
            request,
            capabilities,
            plan=NO_TOOLS if tools is None else plan,
            tools=tools,
            reasoning=formats.reasoning,
            opened=opened,
        )
        wanted = (request.top_logprobs or 0) if request.logprobs else None
        if request.prompt_logprobs is not None:
            requested_top_logprobs(request.prompt_logprobs, "prompt_logprobs", capabilities)
            wanted = max(wanted or 0, request.prompt_logprobs)
        sampling = sampling_params(
            request,
            max_tokens=max_tokens,
            logprobs=requested_top_logprobs(wanted, "top_logprobs", capabilities),
            prompt_logprobs=request.prompt_logprobs is not None,
            constraint=constraint,
            tokenizer=service.model.tokenizer,
            capabilities=capabilities,
        )
        is_parsed = tools is not None or formats.reasoning is not None
        rules = service.text_rules(request, is_parsed=is_parsed, is_constrained=constraint is not None)
        generation = await service.generate(
            [token_ids],
            [sampling],
            n=n,
            rules=rules,
            constraint=constraint,
            meter=self.meter,
            terms=self._terms,
        )
        functions = {tool.function.name: tool.function.parameters or {} for tool in plan.tools}
        for index in range(n):
            parser = None
            if is_parsed:
                parser = make_parser(formats.reasoning, tools, functions, opened=opened)
            reader = ChoiceReader(
                parser,
                plan,
                answer_id=self._id,
                index=index,
                call_ids="long" if tools is None else tools.call_ids,
            )
            self._readers.append(reader)
        await self._replay(generation, rules)
        return generation

    async def _render(self, plan: ToolPlan) -> str:
        request = self._request
        continues = bool(request.continue_final_message)
        adds = request.add_generation_prompt
        if continues and adds:
            raise InvalidRequest(
                "'continue_final_message' and 'add_generation_prompt' cannot both be true: the prompt ends with the "
                "final message, or with the beginning of the next.",
                param="add_generation_prompt",
            )
        return await self._service.render(
            request.messages,
            plan.tools,
            add_generation_prompt=not continues if adds is None else adds,
            continue_final_message=continues,
            variables=_template_variables(request),
        )

    async def _replay(self, generation: Generation, rules: TextRules) -> None:
        """Bring the readers of choices that have begun to where they were."""
        tokenizer = self._service.model.tokenizer
        replays = generation.replays

        def read() -> None:
            for index, replay in replays.items():
                self._readers[index].replay(
                    IncrementalText(tokenizer, rules), replay.shown_token_ids, is_over=replay.finish_reason is not None
                )

        await off_loop(sum(len(replay.token_ids) for replay in replays.values()), read)

    async def whole(self) -> ChatCompletion:
        """The answer in one piece. Cancelling it ends the generation."""
        request = self._request
        async with aclosing(await self._start()) as generation:
            finish_reasons: list[Any] = ["stop"] * len(self._readers)
            tokens: list[list[TokenText]] = [[] for _ in self._readers]
            token_ids: list[list[int]] = [[] for _ in self._readers]
            prompt_logprobs = None
            async for delta in generation:
                self._read(delta)
                tokens[delta.index] += delta.tokens
                token_ids[delta.index] += delta.token_ids
                finish_reasons[delta.index] = delta.finish_reason or finish_reasons[delta.index]
                prompt_logprobs = delta.prompt_logprobs or prompt_logprobs
        answer = ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    index=index,
                    message=reader.message(),
                    logprobs=self._logprobs(tokens[index]),
                    finish_reason=reader.finish_reason(finish_reasons[index]),
                )
                for index, reader in enumerate(self._readers)
            ],
            usage=self._usage(generation),
            system_fingerprint=self._service.fingerprint,
        )
        if request.service_tier is not None:
            answer.service_tier = "default"
        if request.return_token_ids:
            answer.prompt_token_ids = self._prompt_token_ids
            for choice, ids in zip(answer.choices, token_ids, strict=True):
                choice.token_ids = ids
        if request.prompt_logprobs is not None and prompt_logprobs is not None:
            answer.prompt_logprobs = vllm_prompt_logprobs(
                prompt_logprobs, self._service.model.tokenizer, request.prompt_logprobs
            )
        return answer

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
                    events = self._event(self._opening(delta.index))
                if lines is not None:
                    lines.consumed(delta.index, delta.token_ids, delta.held, delta.unfinished)
                events += self._delta_events(delta)
                if events:
                    yield events
        if include_usage:
            yield self._event(None, self._usage(generation))
        yield DONE if lines is None else lines.of_end() + DONE

    def _opening(self, index: int) -> ChunkChoice:
        delta = Delta(role="assistant", content="", refusal=None)
        return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def _read(self, delta: ChoiceDelta) -> Delta | None:
        ends = delta.finish_reason is not None
        return self._readers[delta.index].read(delta.pieces or [delta.text], len(delta.token_ids), ends=ends)

    def _delta_events(self, delta: ChoiceDelta) -> bytes:
        events = b""
        new = self._read(delta)
        if new is not None or delta.tokens or (self._request.return_token_ids and delta.token_ids):
            choice = ChunkChoice(
                index=delta.index,
                delta=Delta(content="") if new is None else new,
                logprobs=self._logprobs(delta.tokens),
                finish_reason=None,
            )
            if self._request.return_token_ids:
                choice.token_ids = list(delta.token_ids)
            events = self._event(choice)
        if delta.finish_reason is not None:
            reason = self._readers[delta.index].finish_reason(delta.finish_reason)
            last = ChunkChoice(index=delta.index, delta=Delta(), logprobs=None, finish_reason=reason)
            events += self._event(last, ends=delta.finish_reason)
        return events

    def _event(self, choice: ChunkChoice | None, final_usage: Usage | None = None, *, ends: str | None = None) -> bytes:
        """A chunk. `ends` is how the engine ended the choice, which goes on so elsewhere."""
        chunk = ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=[] if choice is None else [choice],
            system_fingerprint=self._service.fingerprint,
        )
        request = self._request
        if request.service_tier is not None:
            chunk.service_tier = "default"
        if request.includes_usage():
            chunk.usage = final_usage
        if request.return_token_ids and choice is not None and choice.delta.role is not None:
            chunk.prompt_token_ids = self._prompt_token_ids
        event = sse(chunk.to_json())
        if self._lines is None:
            return event
        if choice is None:
            return self._lines.of_usage() + event
        return self._lines.of_choice(choice.index, ends) + event

    def _usage(self, generation: Generation) -> Usage:
        return usage(generation, reasoning_tokens=sum(reader.reasoning_tokens for reader in self._readers))

    def _logprobs(self, tokens: Sequence[TokenText]) -> ChoiceLogprobs | None:
        if not self._request.logprobs:
            return None
        tokenizer = self._service.model.tokenizer
        top = self._request.top_logprobs or 0
        return ChoiceLogprobs(content=[token_logprob(token, tokenizer, top) for token in tokens], refusal=None)


def _template_variables(request: ChatCompletionRequest) -> dict[str, Any]:
    """What the request gives to the chat template. An effort of "none" turns off the thinking, by the names that
    templates have for it."""
    variables: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        thinks = request.reasoning_effort != "none"
        variables |= {"enable_thinking": thinks, "thinking": thinks}
    if request.verbosity is not None:
        variables["verbosity"] = request.verbosity
    return variables | (request.chat_template_kwargs or {})


def token_logprob(token: TokenText, tokenizer: Tokenizer, top: int) -> TokenLogprob:
    return TokenLogprob(
        token=token.text,
        logprob=token.logprob,
        bytes=list(token.bytes),
        top_logprobs=[_top_logprob(tokenizer.token_bytes(i), logprob) for i, logprob in token.top[:top]],
    )


def _top_logprob(data: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))
