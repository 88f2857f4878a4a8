"""The simulated engine: no model, deterministic words, settable pace. For load and fault tests.

**Vocabulary**: 259 tokens. 0-255 are the bytes of UTF-8 text; 256 `<|im_start|>`, 257 `<|im_end|>` (end of
sequence), 258 `<|endoftext|>`.

**Text**: every prompt has a script, an endless run of words drawn by a hash of the prompt, and a length in words
after which it ends. The token at a position, counted from the prompt's end, depends on the prompt, the
sampling settings and the answer so far, and on nothing else: not on the batch, the clock or the request's id. So an
answer that another engine has begun goes on exactly as it would have there.

**Distribution**: at each position the scripted byte has logit 10; a-z and the space share logits from 5 down in
steps of 0.5, in an order that the position's hash turns; end of sequence has -5 (10 where the script ends).
Other tokens have no chance, unless `logit_bias` names them (from logit -10). On these logits work, in vLLM's
order: `logit_bias`, `bad_words_token_ids`, `min_tokens` (forbids the stop tokens), `repetition_penalty`,
`frequency_penalty`, `presence_penalty`, `temperature`, then `top_k`, `top_p` and `min_p`.

The likeliest token is taken, **unless there is a `seed` and a temperature over 0**: then the script itself
depends on the seed, and the token is drawn by a hash of prompt, seed and position. So without a seed,
`temperature`, `top_k`, `top_p` and `min_p` are accepted and change nothing. `logprobs` are of the distribution
before all of these, as vLLM's are; a token with no chance in it counts as one of logit -10.

**Grammar**: the scripted token is one that the grammar allows, by `simulated_grammar.py`; nothing else has a chance,
whatever the settings.

**Pace**: `sim_ttft_ms` from admission to the first token, `sim_itl_ms` between tokens, per request; 0 is as fast
as possible, one token per step. **Capacity**: `max_concurrency` requests run while their prompts and `max_tokens`
fit the KV pool; the rest wait in order. A token takes 64 KiB of `kv_cache_gb`; without that setting the pool
holds `max_concurrency` full contexts. **Prefix cache**: blocks of 16 prompt tokens, counted in `cached_tokens`;
it saves no time. **Failures**: of all requests, the fraction `sim_failure_rate` ends in a fault, half of them
before the first token, chosen by a hash of prompt and request id, so that a retry may succeed.
"""

import heapq
import math
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from chatfleet.engines.base import (
    Backend,
    Capabilities,
    EngineConfig,
    EngineStats,
    Fault,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)
from chatfleet.engines.checks import check_prompt, check_request
from chatfleet.engines.matching import Grammars, Matcher
from chatfleet.engines.simulated_grammar import allowed_tokens, wanted_token
from chatfleet.engines.simulated_script import (
    END_OF_SEQUENCE,
    SCRIPTED_LOGIT,
    Script,
    base_logits,
    fraction,
    hash_tokens,
    log_softmax,
    mix,
)

VOCAB_SIZE: Final = 259
EMBEDDING_DIM: Final = 64
DEFAULT_CONTEXT_LENGTH: Final = 4096
MAX_TOP_LOGPROBS: Final = 20
KV_BYTES_PER_TOKEN: Final = 64 * 1024
CACHE_BLOCK_TOKENS: Final = 16

_BIASED_LOGIT: Final = -10.0
_PARAMETERS: Final = frozenset(field.name for field in msgspec.structs.fields(SamplingParams))


class _Answer:
    """One request: its script and the tokens so far."""

    def __init__(
        self, request: GenerateRequest, prompt_hash: int, failure_rate: float, matcher: Matcher | None
    ) -> None:
        self.request_id = request.request_id
        self.sampling = sampling = request.sampling
        self.prompt_token_ids = request.prompt_token_ids
        self.given = self.generated = len(request.output_token_ids)
        self.matcher = matcher
        self.cached_tokens = 0
        self.due_s = 0.0
        self._seeded = sampling.seed is not None and sampling.temperature > 0
        self._key = mix(prompt_hash, sampling.seed or 0, 1) if self._seeded else prompt_hash
        self._script = Script(self._key)
        self._stops = frozenset(sampling.stop_token_ids)
        self._counts = Counter(request.output_token_ids) if _needs_counts(sampling) else None
        self._said = list(request.output_token_ids) if sampling.bad_words_token_ids else []
        self._prompt_set = frozenset(request.prompt_token_ids) if sampling.repetition_penalty != 1 else frozenset()
        self._plain = (
            not self._seeded and self._counts is None and not sampling.logit_bias and sampling.logprobs is None
        )
        self.fails_at = self._failure_position(prompt_hash, failure_rate)

    @property
    def reserved_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.sampling.max_tokens

    def _failure_position(self, prompt_hash: int, rate: float) -> int | None:
        if fraction(prompt_hash, self.request_id, 4) >= rate:
            return None
        draw = mix(prompt_hash, self.request_id, 5)
        usual_length = min(self._script.natural_length, self.sampling.max_tokens) - self.given
        return self.given + (0 if draw & 1 or usual_length < 2 else 1 + (draw >> 1) % (usual_length - 1))

    def advance(self) -> TokenDelta:
        """The next token, with what belongs to the first one."""
        position = self.generated
        if position == self.fails_at:
            fault = Fault(message="Simulated failure: this engine was started with --sim-failure-rate.")
            return TokenDelta(request_id=self.request_id, fault=fault)
        first = position == self.given
        prompt_logprobs = self._prompt_logprobs() if first and self.sampling.prompt_logprobs else None
        cached_tokens = self.cached_tokens if first else None
        if self.sampling.max_tokens == 0 or (self.matcher is not None and self.matcher.is_finished):
            return TokenDelta(
                request_id=self.request_id,
                prompt_logprobs=prompt_logprobs,
                cached_tokens=cached_tokens,
                finish_reason="length" if self.sampling.max_tokens == 0 else "stop",
            )
        token_id, logprobs = self._choose(position)
        self.generated += 1
        if self._counts is not None:
            self._counts[token_id] += 1
        if self.sampling.bad_words_token_ids:
            self._said.append(token_id)
        finish_reason: FinishReason | None = None
        broken: Fault | None = None
        if token_id in self._stops and self.generated > self.sampling.min_tokens:
            finish_reason = "stop"
        elif self.matcher is not None:
            self.matcher.advance(token_id)
            broken = self.matcher.fault
            finish_reason = "stop" if broken is None and self.matcher.is_finished else None
        if broken is None and finish_reason is None and self.generated >= self.sampling.max_tokens:
            finish_reason = "length"
        return TokenDelta(
            request_id=self.request_id,
            token_ids=[token_id],
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=prompt_logprobs,
            cached_tokens=cached_tokens,
            finish_reason=finish_reason,
            fault=broken,
        )

    def _choose(self, position: int) -> tuple[int, TokenLogprobs | None]:
        may_stop = position >= self.sampling.min_tokens
        forbidden = frozenset() if may_stop or self.matcher is not None else self._stops
        if self.sampling.bad_words_token_ids:
            forbidden |= bad_word_ends(self.sampling.bad_words_token_ids, self._said)
        ends = (
            position >= self._script.natural_length
            and may_stop
            and END_OF_SEQUENCE in self._stops
            and END_OF_SEQUENCE not in forbidden
        )
        scripted = END_OF_SEQUENCE if ends else self._script.token(position)
        allowed: list[int] = []
        if self.matcher is not None:
            allowed = allowed_tokens(self.matcher.allowed(may_stop=may_stop), VOCAB_SIZE)
            allowed = [token_id for token_id in allowed if token_id not in forbidden] or allowed
            stops = [token_id for token_id in allowed if may_stop and token_id in self._stops]
            complete = self.matcher.is_complete
            scripted = wanted_token(scripted, stops, allowed, self._key, position, is_complete=complete)
        if self._plain and scripted not in forbidden:
            return scripted, None
        logits = base_logits(scripted, self._key, position)
        wanted = self.sampling.logprobs
        own = None if wanted is None else log_softmax(logits)
        adjusted = self._adjusted(logits, forbidden)
        if allowed:
            adjusted = {token_id: adjusted.get(token_id, _BIASED_LOGIT) for token_id in allowed}
        ranked = log_softmax(adjusted)
        token_id = self._draw(ranked, position) if self._seeded else ranked[0][0]
        if own is None:
            return token_id, None
        logprob = dict(own).get(token_id, own[0][1] - SCRIPTED_LOGIT + _BIASED_LOGIT)
        return token_id, TokenLogprobs(token_id, logprob, own[:wanted])

    def _adjusted(self, logits: dict[int, float], forbidden: frozenset[int]) -> dict[int, float]:
        sampling = self.sampling
        for token_id, bias in sampling.logit_bias.items():
            logits[token_id] = logits.get(token_id, _BIASED_LOGIT) + bias
        if len(forbidden.intersection(logits)) < len(logits):
            for token_id in forbidden:
                logits.pop(token_id, None)
        counts = self._counts
        if counts is not None:
            for token_id, logit in logits.items():
                count = counts[token_id]
                if count or token_id in self._prompt_set:
                    penalty = sampling.repetition_penalty
                    logit = logit / penalty if logit > 0 else logit * penalty
                if count:
                    logit -= sampling.frequency_penalty * count + sampling.presence_penalty
                logits[token_id] = logit
        return logits

    def _draw(self, ranked: list[tuple[int, float]], position: int) -> int:
        """A token by the hash of prompt, seed and position, from the tempered and truncated distribution."""
        sampling = self.sampling
        best = ranked[0][1]
        weights = [(token_id, math.exp((logprob - best) / sampling.temperature)) for token_id, logprob in ranked]
        if sampling.top_k > 0:
            weights = weights[: sampling.top_k]
        total = sum(weight for _, weight in weights)
        kept: list[tuple[int, float]] = []
        mass = 0.0
        for token_id, weight in weights:  # the first is always kept
            if kept and (mass >= sampling.top_p * total or weight < sampling.min_p):
                break
            kept.append((token_id, weight))
            mass += weight
        point = fraction(self._key, 6, position) * mass
        for token_id, weight in kept:
            point -= weight
            if point < 0:
                return token_id
        return kept[-1][0]

    def _prompt_logprobs(self) -> list[TokenLogprobs | None]:
        """As if each prompt token were scripted after those before it: a shared prefix has shared values."""
        wanted = self.sampling.logprobs or 0
        key, result = 7, list[TokenLogprobs | None]([None])
        for previous, token_id in zip(self.prompt_token_ids, self.prompt_token_ids[1:], strict=False):
            key = mix(key, previous)
            ranked = log_softmax(base_logits(token_id, key, len(result)))
            result.append(TokenLogprobs(token_id, ranked[0][1], ranked[:wanted]))
        return result


def bad_word_ends(bad_words: Iterable[tuple[int, ...]], said: Sequence[int]) -> frozenset[int]:
    """The tokens that would complete a bad word behind `said`."""
    fitting = (word for word in bad_words if len(word) <= len(said) + 1)
    return frozenset(word[-1] for word in fitting if tuple(said[len(said) + 1 - len(word) :]) == word[:-1])


def _needs_counts(sampling: SamplingParams) -> bool:
    return sampling.presence_penalty != 0 or sampling.frequency_penalty != 0 or sampling.repetition_penalty != 1


class SimulatedBackend(Backend):
    """See the module's docstring. A request refused for its size or token ids is `invalid`."""

    def __init__(self, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        context_length = config.context_length or DEFAULT_CONTEXT_LENGTH
        if config.kv_cache_gb is None:
            self._pool_tokens = context_length * config.max_concurrency
        else:
            self._pool_tokens = int(config.kv_cache_gb * 10**9) // KV_BYTES_PER_TOKEN
        self._grammars = None if config.token_bytes is None else Grammars(config.token_bytes, VOCAB_SIZE)
        self._capabilities = Capabilities(
            engine="simulated",
            parameters=_PARAMETERS if self._grammars else _PARAMETERS - {"grammar"},
            context_length=min(context_length, self._pool_tokens),
            vocab_size=VOCAB_SIZE,
            embedding_dim=EMBEDDING_DIM,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            grammar_syntax="lark" if self._grammars else None,
        )
        self._max_concurrency = config.max_concurrency
        self._failure_rate = config.sim_failure_rate
        self._ttft_s = config.sim_ttft_ms / 1000
        self._itl_s = config.sim_itl_ms / 1000
        # Answers that fall due within a tenth of the pace share a step, as they would in a batching engine:
        # 1000 streams at 100 ms make 100 to 200 steps a second, not 10000.
        self._tick_s = min((pace for pace in (self._ttft_s, self._itl_s) if pace > 0), default=0.0) / 10
        self._tick_s = min(self._tick_s, 0.01)
        self._waiting: OrderedDict[int, _Answer] = OrderedDict()
        self._running: dict[int, _Answer] = {}
        self._due: list[tuple[float, int]] = []
        self._reserved_tokens = 0
        self._held_tokens = 0
        self._generated_tokens = 0
        self._steps = 0
        self._cached_blocks: OrderedDict[int, None] = OrderedDict()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def add(self, request: GenerateRequest) -> None:
        check_request(request, self._capabilities)
        matcher = None
        if self._grammars is not None and request.sampling.grammar is not None:
            compiled = self._grammars.compile(request.sampling.grammar).result()
            matcher = self._grammars.matcher(compiled, request.sampling.stop_token_ids)
        answer = _Answer(request, hash_tokens(request.prompt_token_ids), self._failure_rate, matcher)
        self._waiting[request.request_id] = answer
        self._admit(self._clock())

    def cancel(self, request_id: int) -> None:
        if self._waiting.pop(request_id, None) is None and request_id in self._running:
            self._release(request_id)
        self._admit(self._clock())

    def step(self) -> list[TokenDelta]:
        now = self._clock()
        due = []
        while self._due and self._due[0][0] <= now:
            _, request_id = heapq.heappop(self._due)
            answer = self._running.get(request_id)
            if answer is not None:
                due.append(answer)
        deltas = [self._advance(answer, now) for answer in due]
        if deltas:
            self._steps += 1
            self._admit(now)
        return deltas

    def next_step_s(self) -> float | None:
        while self._due and self._due[0][1] not in self._running:
            heapq.heappop(self._due)
        if not self._due:
            return None
        now = self._clock()
        due_s = self._due[0][0]
        if due_s <= now:
            return 0.0
        if self._tick_s > 0:
            due_s = math.ceil(due_s / self._tick_s) * self._tick_s
        return due_s - now

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_cache_usage=self._held_tokens / self._pool_tokens if self._pool_tokens else 0.0,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        check_prompt(prompt_token_ids, self._capabilities)
        key = hash_tokens(prompt_token_ids)
        values = [2 * fraction(key, 8, index) - 1 for index in range(EMBEDDING_DIM)]
        norm = math.sqrt(sum(value * value for value in values))
        return struct.pack(f"<{EMBEDDING_DIM}f", *(value / norm for value in values))

    def recover(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._due.clear()
        self._reserved_tokens = self._held_tokens = 0

    def _admit(self, now: float) -> None:
        """Run what waits, in order, while it fits."""
        while self._waiting and len(self._running) < self._max_concurrency:
            request_id, answer = next(iter(self._waiting.items()))
            if self._reserved_tokens + answer.reserved_tokens > self._pool_tokens:
                return
            del self._waiting[request_id]
            self._running[request_id] = answer
            self._reserved_tokens += answer.reserved_tokens
            self._held_tokens += len(answer.prompt_token_ids) + answer.given
            if not answer.sampling.prompt_logprobs:  # they need every position computed
                answer.cached_tokens = self._look_up_prefix(answer.prompt_token_ids)
            self._schedule(answer, now + self._ttft_s)

    def _advance(self, answer: _Answer, now: float) -> TokenDelta:
        delta = answer.advance()
        self._generated_tokens += len(delta.token_ids)
        self._held_tokens += len(delta.token_ids)
        if delta.finish_reason is not None or delta.fault is not None:
            self._release(answer.request_id)
        else:
            # From when it was due, so that the pace holds on average; but a long pause is not caught up on.
            self._schedule(answer, max(answer.due_s + self._itl_s, now - 1.0))
        return delta

    def _schedule(self, answer: _Answer, due_s: float) -> None:
        answer.due_s = due_s
        if len(self._due) > 2 * len(self._running) + 64:  # mostly cancelled ones
            self._due = [entry for entry in self._due if entry[1] in self._running]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (due_s, answer.request_id))

    def _release(self, request_id: int) -> None:
        answer = self._running.pop(request_id)
        self._reserved_tokens -= answer.reserved_tokens
        self._held_tokens -= len(answer.prompt_token_ids) + answer.generated

    def _look_up_prefix(self, prompt_token_ids: list[int]) -> int:
        """Prompt tokens that the cache holds, in whole blocks and never all of them; the prompt is in it after."""
        cached, key, hit = 0, 0, True
        usable = len(prompt_token_ids) - 1
        for start in range(0, usable - CACHE_BLOCK_TOKENS + 1, CACHE_BLOCK_TOKENS):
            key = mix(key, hash_tokens(prompt_token_ids[start : start + CACHE_BLOCK_TOKENS]))
            hit = hit and key in self._cached_blocks
            if hit:
                cached += CACHE_BLOCK_TOKENS
            self._cached_blocks[key] = None
            self._cached_blocks.move_to_end(key)
        while len(self._cached_blocks) > self._pool_tokens // CACHE_BLOCK_TOKENS:
            self._cached_blocks.popitem(last=False)
        return cached
