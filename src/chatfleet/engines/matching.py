"""Grammars over an engine's vocabulary: which tokens may come next.

By llguidance (https://github.com/guidance-ai/llguidance), whose Lark is the syntax "lark". With 151936 tokens a mask
takes 5 to 20 microseconds where strings and numbers are single lexemes, so masks are made one after the other: 0.18 ms
for 8 answers, where llguidance's own threads take 0.25, and up to 30 while torch's have the cores. A grammar takes 1
to 10 ms to compile (40 for an object of 2000 properties), which a thread does beside the steps.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from chatfleet.engines.base import Fault, RequestRefused

COMPILE_POLL_S: Final = 0.002
"""How soon to look again whether a grammar that a request waits for is compiled."""

_MAX_CHARS: Final = 500_000
_STACK_BYTES: Final = 256 * 2**20
"""Of the compiling thread. Rules are compiled recursively: 60000 that are nested take less, 3000 more than the usual
8 MiB, which is a crash of the process."""
_MAX_COMPILED: Final = 32
_MAX_LEXER_STATES: Final = 50_000  # of 1 to 2 KB each, for every answer

# Else a text that must come may be written by one sequence of tokens alone, which llguidance asks a tokenizer for.
_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'


class Grammar(NamedTuple):
    """A compiled grammar at its beginning. Never advanced, only copied."""

    matcher: LLMatcher
    mask: bytes


class Matcher:
    """An answer's place in its grammar; at first its beginning."""

    def __init__(self, grammars: "Grammars", grammar: Grammar, stop_token_ids: Sequence[int]) -> None:
        self._grammars = grammars
        self._state = grammar.matcher.deep_copy()
        self._mask = grammar.mask
        self._stops = [token_id for token_id in stop_token_ids if 0 <= token_id < grammars.vocab_size]
        self.fault: Fault | None = None
        """Why the answer cannot go on."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return _has(self._mask, self._grammars.vocab_size)

    @property
    def is_finished(self) -> bool:
        """Whether the answer must end here, because nothing can follow."""
        return self._mask == self._grammars.only_end

    def allowed(self, *, may_stop: bool) -> bytes:
        """The tokens that may come next: bit `i % 8` of byte `i // 8` is of token `i`. Bits behind the vocabulary mean
        nothing.

        A stop token may come where the answer may end, and where it is text that the grammar has; with `may_stop` off
        only in the latter case, and only where nothing else may come.
        """
        if not self._stops or (may_stop and not self.is_complete):
            return self._mask
        mask = bytearray(self._mask)
        if may_stop:
            for token_id in self._stops:
                mask[token_id >> 3] |= 1 << (token_id & 7)
            return bytes(mask)
        for token_id in (*self._stops, self._grammars.vocab_size):
            mask[token_id >> 3] &= ~(1 << (token_id & 7))
        return bytes(mask) if mask.count(0) < len(mask) else self._mask

    def advance(self, token_id: int) -> None:
        """Move on by a token that was allowed. Where the answer cannot go on then, `fault` says why."""
        self._state.consume_token(token_id)
        self._mask = self._state.compute_bitmask()
        if self._state.is_error():
            self.fault = _fault("The answer cannot go on within its grammar", self._state)


class Grammars:
    """Compiles grammars for a vocabulary.

    `token_bytes` are what tokens stand for, by id. One of `vocab_size` that is not in there, or empty, is in no text.
    Making this takes 0.4 s and 60 MB for 151936 tokens.
    """

    def __init__(self, token_bytes: Sequence[bytes], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = _tokenizer(token_bytes, vocab_size)
        self.only_end = (1 << vocab_size).to_bytes((vocab_size + 1 + 31) // 32 * 4, "little")
        self._limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        self._compiled: OrderedDict[str, Future[Grammar | Fault]] = OrderedDict()
        self._compiler = _thread(_STACK_BYTES)

    def compile(self, text: str) -> Future[Grammar | Fault]:
        """The grammar when it is compiled, or why it cannot be. The last few are kept: requests often have the same."""
        compiled = self._compiled.get(text)
        if compiled is None:
            compiled = self._compiled[text] = self._compiler.submit(self._compile, text)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return compiled

    def matcher(self, compiled: Grammar | Fault, stop_token_ids: Sequence[int]) -> Matcher:
        """The beginning of an answer that may end with any of `stop_token_ids`. Raises RequestRefused for a grammar
        that could not be compiled."""
        if isinstance(compiled, Fault):
            raise RequestRefused(compiled)
        return Matcher(self, compiled, stop_token_ids)

    def _compile(self, text: str) -> Grammar | Fault:
        if len(text) > _MAX_CHARS:
            message = f"The grammar is too large: it comes to {len(text)} characters, the most are {_MAX_CHARS}."
            return Fault(message=message, kind="invalid", param="grammar")
        matcher = LLMatcher(self._tokenizer, _OPTIONS + text, log_level=0, limits=self._limits)
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            return _fault("The grammar cannot be used", matcher)
        return Grammar(matcher, mask)


class _Vocabulary:
    """What llguidance asks of a tokenizer. Behind the vocabulary is one token more, which stands for the end."""

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes], vocab_size: int) -> None:
        # A token that begins with the byte 255, which no text has, would be one of llguidance's own control tokens.
        known = [b"" if text.startswith(b"\xff") else text for text in token_bytes[:vocab_size]]
        self.tokens = known + [b""] * (vocab_size + 1 - len(known))
        self.eos_token_id = vocab_size
        self.special_token_ids = [vocab_size]

    def __call__(self, text: Any) -> list[int]:
        raise NotImplementedError("no text is forced, so none is written in tokens")


def _tokenizer(token_bytes: Sequence[bytes], vocab_size: int) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Vocabulary(token_bytes, vocab_size)))


def _thread(stack_bytes: int) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1, thread_name_prefix="grammar")
    usual = threading.stack_size(stack_bytes)
    try:
        executor.submit(int).result()  # the thread starts now
    finally:
        threading.stack_size(usual)
    return executor


def _has(mask: bytes, token_id: int) -> bool:
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)


def _fault(what: str, matcher: LLMatcher) -> Fault:
    why = matcher.get_error().partition("\n")[0].rstrip(".")
    if why == "NoExtensionBias":
        why = "the vocabulary of the model has no token for what must follow"
    message = f"{what}: {why}. Ask for a simpler schema, pattern or grammar."
    return Fault(message=message, kind="invalid", param="grammar")
