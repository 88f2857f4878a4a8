"""What the APIs of a worker share: the model, its engine, and the steps from text to a generation."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from chatfleet import __version__
from chatfleet.chat.messages import END_MARK, template_messages, template_tools, up_to_mark
from chatfleet.chat.text import TextRules
from chatfleet.core.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest, ModelNotFound
from chatfleet.core.fleet import Heartbeat, ModelInfo, WorkerInfo, WorkerLoad
from chatfleet.engines.base import Capabilities, Engine, SamplingParams
from chatfleet.protocol.chat import ChatMessage, Tool
from chatfleet.protocol.common import CompletionTokensDetails, ModelCard, PromptTokensDetails, SamplingFields, Usage
from chatfleet.protocol.resume import Resume
from chatfleet.worker.admission import Admission
from chatfleet.worker.generation import Generation, Job
from chatfleet.worker.metrics import RequestMeter, WorkerMetrics
from chatfleet.worker.model_source import ServedModel
from chatfleet.worker.recovery import Terms, check_resume, grammar_behind, replay
from chatfleet.worker.registration import new_worker_id
from chatfleet.worker.sampling import for_choice
from chatfleet.worker.structure import Constraint
from chatfleet.worker.structures import Structures

_COMPOSED_CHARS = 4  # normalising a text makes at most about this many characters one
_OFF_LOOP_SIZE = 4096  # characters or tokens; turning this many into each other takes about a millisecond


class WorkerService:
    """One model on one engine. `is_in_fleet` says whether gateways use it, which may have it go on with the streams of
    others, and say whose requests come first."""

    def __init__(self, model: ServedModel, engine: Engine, admission: Admission, *, is_in_fleet: bool = False) -> None:
        self.model = model
        self.engine = engine
        self.admission = admission
        self.is_in_fleet = is_in_fleet
        self.worker_id = new_worker_id()
        self.fingerprint = _fingerprint(model)
        self.structures = Structures()
        self.metrics = WorkerMetrics(model.names[0], admission, engine.stats)

    def load(self) -> WorkerLoad:
        return WorkerLoad(running=self.admission.running, waiting=self.admission.waiting)

    def heartbeat(self, url: str, speed: float) -> Heartbeat:
        """What controllers are told of this worker, which is reached at `url`."""
        context_length = self.capabilities.context_length if self.engine.ready else None
        models = tuple(
            ModelInfo(id=name, created=self.model.created, context_length=context_length) for name in self.model.names
        )
        return Heartbeat(
            worker=WorkerInfo(worker_id=self.worker_id, url=url, models=models, ready=self.engine.ready, speed=speed),
            load=self.load(),
        )

    async def start(self) -> None:
        """Start the engine and check that it suits the model. Raises ConfigurationError."""
        await self.engine.start()
        outside = [i for i in self.model.tokenizer.eos_token_ids if i >= self.capabilities.vocab_size]
        if outside:
            raise ConfigurationError(
                f"The tokenizer does not belong to this model: its end token {outside[0]} is outside the "
                f"model's {self.capabilities.vocab_size} tokens. Fetch the model's files again."
            )

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    def model_name(self, requested: str | None) -> str:
        """The name to answer under. Raises ModelNotFound, naming what is served."""
        if requested is None:
            return self.model.names[0]
        if requested not in self.model.names:
            raise ModelNotFound(requested, self.model.names)
        return requested

    def model_cards(self) -> list[ModelCard]:
        context_length = self.capabilities.context_length if self.engine.ready else None
        return [
            ModelCard(
                id=name,
                object="model",
                created=self.model.created,
                owned_by="chatfleet",
                max_model_len=context_length,
            )
            for name in self.model.names
        ]

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids, made off the event loop when the text is long."""
        encode = self.model.tokenizer.encode
        return await off_loop(len(text), lambda: encode(text, add_special_tokens=add_special_tokens))

    async def encode_bounded(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """The same for a prompt, refused unread when no tokenizing could make it fit: that takes 100 bytes a
        character. Raises ContextLengthExceeded, naming `param`."""
        context_length, longest = self.capabilities.context_length, self.model.tokenizer.longest_token_chars
        if len(text) > _COMPOSED_CHARS * longest * context_length:
            raise ContextLengthExceeded(
                prompt_tokens=len(text) // (_COMPOSED_CHARS * longest),
                max_tokens=None,
                context_length=context_length,
                param=param,
                at_least=True,
            )
        return await self.encode(text, add_special_tokens=add_special_tokens)

    async def encode_prompt(self, prompt: str | list[int], param: str) -> list[int]:
        """A completion's or embedding's input as token ids; an empty text is one end-of-text token."""
        if not isinstance(prompt, str):
            return prompt
        token_ids = await self.encode_bounded(prompt, param, add_special_tokens=True)
        return token_ids or [min(self.model.tokenizer.eos_token_ids, default=0)]

    async def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] | None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt that the chat template makes; with `continue_final_message` it ends with the last message's text.
        Raises InvalidRequest."""
        template = self.model.template
        if template is None:
            raise InvalidRequest(
                "This model has no chat template. Use /v1/completions, or start the worker with --chat-template."
            )
        rendered = template_messages(messages, knows_developer=template.knows_developer)
        if continue_final_message:
            rendered[-1]["content"] += END_MARK
        size = _OFF_LOOP_SIZE if tools else sum(len(message["content"]) for message in rendered)
        prompt = await off_loop(
            size,
            lambda: template.render(
                rendered,
                tools=template_tools(tools),
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            ),
        )
        return up_to_mark(prompt) if continue_final_message else prompt

    def text_rules(self, request: SamplingFields, *, is_parsed: bool, is_constrained: bool) -> TextRules:
        """What shows of the answers. Where they are parsed, or a grammar says what they are, the control tokens of the
        model's own formats are text like any other."""
        return TextRules(
            stops=request.stop_strings(),
            min_tokens=request.min_tokens or 0,
            shows_stop=bool(request.include_stop_str_in_output),
            shows_control=request.skip_special_tokens is False,
            visible=self.model.visible_token_ids if is_parsed or is_constrained else frozenset(),
            by_token=is_parsed,
            by_character=is_constrained,
        )

    async def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sequence[SamplingParams],
        *,
        n: int,
        rules: TextRules,
        constraint: Constraint | None = None,
        meter: RequestMeter,
        terms: Terms,
    ) -> Generation:
        """Start n choices of every prompt, indexed prompt by prompt, or go on with those that have begun. Raises
        QueueFull, EngineUnavailable, and InvalidRequest for a stream to go on with that does not fit."""
        jobs = [
            Job(prompt * n + choice, prompt, token_ids, for_choice(sampling[prompt], choice))
            for prompt, token_ids in enumerate(prompts)
            for choice in range(n)
        ]
        if terms.resume is not None:
            jobs = await self._resumed(jobs, terms.resume, rules, constraint)
        return Generation(
            jobs,
            engine=self.engine,
            admission=self.admission,
            tokenizer=self.model.tokenizer,
            rules=rules,
            meter=meter,
            constraint=constraint,
            priority=terms.priority,
        )

    async def _resumed(
        self, jobs: Sequence[Job], resume: Resume, rules: TextRules, constraint: Constraint | None
    ) -> list[Job]:
        check_resume(resume, choices=len(jobs), vocab_size=self.capabilities.vocab_size)
        begun = {choice.index: choice for choice in resume.choices}
        tokenizer = self.model.tokenizer

        def resumed(job: Job) -> Job:
            choice = begun.get(job.index)
            if choice is None:
                return job
            sampling = msgspec.structs.replace(job.sampling, prompt_logprobs=False)  # the echo has been delivered
            replayed = replay(choice, tokenizer, rules, sampling)
            if constraint is not None and replayed.finish_reason is None:
                grammar = grammar_behind(constraint, choice, self.model.grammar_bytes)
                sampling = msgspec.structs.replace(sampling, grammar=grammar)
            return replace(job, sampling=sampling, replay=replayed)

        size = sum(len(choice.token_ids) for choice in resume.choices)
        if constraint is not None:
            size = max(size, _OFF_LOOP_SIZE)
        return await off_loop(size, lambda: [resumed(job) for job in jobs])


T = TypeVar("T")


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread where its `size` (characters or tokens) would hold up the loop."""
    return work() if size < _OFF_LOOP_SIZE else await asyncio.to_thread(work)


def _fingerprint(model: ServedModel) -> str:
    """OpenAI's `system_fingerprint`: the same wherever the same model is run in the same way."""
    told = f"{__version__} {model.engine} {model.names[0]}"
    return f"fp_{hashlib.blake2b(told.encode(), digest_size=5).hexdigest()}"


def answer_identity(terms: Terms, prefix: str) -> tuple[str, int]:
    """An answer's id and its `created`, which is Unix time in whole seconds: new ones, or those of the stream that it
    goes on with."""
    if terms.resume is not None:
        return terms.resume.id, terms.resume.created
    return f"{prefix}-{uuid.uuid4().hex}", int(time.time())


def usage(generation: Generation, *, reasoning_tokens: int = 0) -> Usage:
    prompt_details = PromptTokensDetails(audio_tokens=0)
    if generation.cached_tokens is not None:
        prompt_details.cached_tokens = generation.cached_tokens
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        total_tokens=generation.prompt_tokens + generation.completion_tokens,
        prompt_tokens_details=prompt_details,
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=reasoning_tokens,
            audio_tokens=0,
            accepted_prediction_tokens=0,
            rejected_prediction_tokens=0,
        ),
    )
