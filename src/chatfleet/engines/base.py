"""The engine interface: token ids and resolved sampling settings in, token deltas out.

Two halves. `Backend` is what an engine implements: synchronous, single-threaded, driven by the loop of
the engine process. `Engine` is what the worker holds: asynchronous, one stream per request.
`engines/process.py` joins them over a pipe, so everything that crosses is a msgspec Struct.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal, Protocol

import msgspec

from chatfleet.core.errors import EngineError, InvalidRequest, ServingError, UnsupportedParameter

FinishReason = Literal["stop", "length"]

GREEDY_BELOW: Final = 1e-5
"""A temperature under this is greedy decoding, as in vLLM: logits divided by it overflow float32."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to sample one choice. Names and meanings are vLLM's; a default means "off".

    Everything is resolved: `stop_token_ids` already holds the model's end-of-sequence ids (or not,
    under `ignore_eos`), `max_tokens` already fits the context. Stop strings are text: the worker
    finds them and closes the stream.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = {}
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the answer never contains: the last token of each is forbidden behind the others."""
    logprobs: int | None = None
    """None: no log probabilities; 0: of the chosen token; k > 0: of the k likeliest tokens too."""
    prompt_logprobs: bool = False
    grammar: str | None = None
    """What the text must be, from behind `GenerateRequest.output_token_ids` to its end, in the syntax of
    `Capabilities.grammar_syntax`. Where it is complete and nothing can follow, the answer ends with "stop"."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One choice to generate. `request_id` is unique within the engine's life.

    `output_token_ids` are the answer's first tokens, which another engine has generated: the answer goes on behind
    them as if they had been generated here, and deltas have only what is new. `max_tokens` and `min_tokens` are of
    the whole answer, of which something must be left to generate.
    """

    request_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output_token_ids: list[int] = []


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position: the chosen token's and the likeliest ones', best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why one request failed, in a form that crosses the pipe."""

    message: str
    kind: Literal["engine", "invalid", "unsupported"] = "engine"
    param: str | None = None

    def to_error(self) -> ServingError:
        """The error that the client of this request sees."""
        kinds: dict[str, type[ServingError]] = {
            "engine": EngineError,
            "invalid": InvalidRequest,
            "unsupported": UnsupportedParameter,
        }
        return kinds[self.kind](self.message, param=self.param)


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step added to one request.

    A stop token that ended the request is the last of `token_ids` (it counts as generated).
    `cached_tokens`, on a request's first delta, counts prompt tokens that the prefix cache held.
    After a delta with `finish_reason` or `fault` no other comes for that request.
    """

    request_id: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    fault: Fault | None = None


GrammarSyntax = Literal["ebnf", "lark"]
"""xgrammar's EBNF, or llguidance's Lark."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process needs to load a model. Sizes in GB are 10**9 bytes."""

    engine: str
    model_path: str | None = None
    """A GGUF file or a model folder; None where the engine has no model (simulated)."""
    context_length: int | None = None
    kv_cache_gb: float | None = None
    memory_share: float = 1.0
    """The part of the free memory that this engine may reckon with: others may be loading beside it."""
    max_concurrency: int = 64
    max_num_batched_tokens: int | None = None
    """The most tokens that a step computes, of prompts and answers together; None is "by the machine's speed"."""
    device: str = "auto"
    dtype: str = "auto"
    """Of weights and activations: auto (what suits model and device), float32, float16 or bfloat16."""
    deterministic: bool = False
    max_gpu_memory_gb: float | None = None
    """The most of each GPU's memory that weights and KV cache may take; None is "most of it"."""
    trust_remote_code: bool = False
    draft_model_path: str | None = None
    """A smaller model of the same vocabulary that proposes tokens."""
    prompt_lookup: bool = False
    """Propose tokens that followed the last few in the prompt or the answer."""
    num_assistant_tokens: int = 4
    """How many tokens to propose at a time, by a draft model or by prompt lookup."""
    lora_path: str | None = None
    """A LoRA adapter (safetensors) that every request runs with."""
    token_bytes: list[bytes] | None = None
    """What each token stands for in text, by id, for grammars; empty for control tokens, which no grammar matches.
    None where there are to be no grammars."""
    sim_ttft_ms: float = 0.0
    sim_itl_ms: float = 0.0
    sim_failure_rate: float = 0.0


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine can do."""

    engine: str
    parameters: frozenset[str]
    """Names of the `SamplingParams` fields that it honours."""
    context_length: int
    """The most tokens that a prompt and its completion may have: min(model's, KV pool's)."""
    vocab_size: int
    embedding_dim: int | None = None
    """Length of an embedding; None where it makes none."""
    max_top_logprobs: int = 0
    grammar_syntax: GrammarSyntax | None = None
    """How `SamplingParams.grammar` is written; None where the engine honours none."""
    modalities: tuple[str, ...] = ("text",)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's figures. KV usage is a fraction of the pool, 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    generated_tokens: int = 0
    steps: int = 0


class RequestRefused(Exception):
    """Raised by `Backend.add` and `Backend.embed`: this request cannot run; others are unharmed."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Backend(ABC):
    """An engine inside its process. One thread calls it, never concurrently.

    An exception out of `step` fails every request that the backend held; the loop then calls
    `recover`, and if that raises too the process exits and is started anew.
    """

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def add(self, request: GenerateRequest) -> None:
        """Queue a request. Raises RequestRefused."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Forget a request and free its KV before the next step. Unknown ids are no error."""

    @abstractmethod
    def step(self) -> list[TokenDelta]:
        """Advance what is due by one iteration. Empty when nothing came of it."""

    @abstractmethod
    def next_step_s(self) -> float | None:
        """Seconds until `step` has something to do: 0.0 is now, None is "not before a new request"."""

    @abstractmethod
    def stats(self) -> EngineStats: ...

    def embedding_ready(self) -> bool:
        """Whether `embed` can go at once. The first call begins what takes long, beside the steps; ask again."""
        return True

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        """The L2-normalised embedding of one input: `embedding_dim` little-endian float32 values."""
        raise RequestRefused(Fault(message="This model makes no embeddings.", kind="unsupported"))

    @abstractmethod
    def recover(self) -> None:
        """Make the backend usable after `step` raised; no request is left in it afterwards."""

    def close(self) -> None:  # noqa: B027 - most have nothing that the end of the process does not free
        """Free what outlives the process, such as temporary files."""


class TokenStream(Protocol):
    """The deltas of one request, in order. Each has tokens or ends the stream.

    Iterating raises a ServingError where the request failed. `aclose` is idempotent and cancels the
    request if it is not done; cancelling the task that iterates does not: close the stream.
    """

    def __aiter__(self) -> AsyncIterator[TokenDelta]: ...

    async def __anext__(self) -> TokenDelta: ...

    async def aclose(self) -> None: ...


class Engine(ABC):
    """An engine as the worker sees it."""

    @abstractmethod
    async def start(self) -> None:
        """Load the model. Returns when requests can be taken. Raises ConfigurationError."""

    @property
    @abstractmethod
    def ready(self) -> bool: ...

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Known once `start` has returned."""

    @abstractmethod
    def generate(
        self, prompt_token_ids: list[int], sampling: SamplingParams, output_token_ids: Sequence[int] = ()
    ) -> TokenStream:
        """Start generating one choice, or go on behind `output_token_ids` (see `GenerateRequest`). Raises
        EngineUnavailable when not ready."""

    @abstractmethod
    async def embed(self, prompts: Sequence[list[int]]) -> list[bytes]:
        """Embeddings in the order of `prompts`, each as `Backend.embed` gives it."""

    @abstractmethod
    def stats(self) -> EngineStats: ...

    @abstractmethod
    async def aclose(self) -> None:
        """End the engine; running requests fail with EngineUnavailable."""


def unsupported_parameters(sampling: SamplingParams, capabilities: Capabilities) -> list[str]:
    """The fields of `sampling` that are set to something and that the engine does not honour."""
    return [
        field.name
        for field in msgspec.structs.fields(SamplingParams)
        if field.name not in capabilities.parameters
        and not field.required
        and getattr(sampling, field.name) != field.default
        and getattr(sampling, field.name) != {}
    ]
