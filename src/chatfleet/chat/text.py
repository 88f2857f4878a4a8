"""Text that grows token by token: exact UTF-8, stop strings, log probabilities in step with the text.

One state machine serves streamed and whole answers, so that a stream concatenates to exactly the whole.
"""

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from chatfleet.chat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token that shows: id, exact bytes, place in the text (characters before it), log probability."""

    token_id: int
    bytes: bytes
    offset: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()

    @property
    def text(self) -> str:
        """The token as text; bytes that are no whole character become U+FFFD."""
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Logprob:
    """What an engine says of one token: natural-log probability and likeliest alternatives, best first."""

    logprob: float
    top: Sequence[tuple[int, float]] = ()


@dataclass(slots=True)
class TextDelta:
    """What may be shown now. `stopped` says that a stop string ended the text."""

    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    stopped: bool = False


class StopStrings:
    """Finds the first stop string in text that comes in pieces, and holds back what may begin one.

    The match that is complete first wins (of several that end together, the longest), so the result
    does not depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str], *, shows_found: bool = False) -> None:
        """`shows_found` says whether the stop string that was found is the end of what can be shown."""
        self._stops = tuple(stops)
        self._shows_found = shows_found
        self._held = ""
        self._shown = 0

    def feed(self, text: str, *, spared: int = 0) -> tuple[str, bool]:
        """Text that can be shown, and whether a stop string was found right behind it. One that ends within the first
        `spared` characters of the whole text is none."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        first_end = spared - self._shown + 1
        found = [
            (at + len(stop), at)
            for stop in self._stops
            if (at := buffer.find(stop, max(0, first_end - len(stop)))) >= 0
        ]
        if found:
            self._held = ""
            end, start = min(found)
            return buffer[: end if self._shows_found else start], True
        keep = max(_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - keep :]
        self._shown += len(buffer) - keep
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class CharacterDecoder:
    """UTF-8 that comes in pieces which may end inside of a character. What is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_inside(self) -> bool:
        """Whether the last piece has ended inside of a character."""
        return bool(self._decoder.getstate()[0])

    def feed(self, data: bytes) -> tuple[str, str]:
        """U+FFFD for a character that was begun and does not go on with `data`, else nothing; and the text of `data`,
        to which a character belongs that ends there."""
        broken = ""
        begun = self._decoder.getstate()[0]
        if begun and data and not _may_go_on(begun + data[:1]):
            broken = self.finish()
        return broken, self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that was begun, else nothing."""
        return self._decoder.decode(b"", final=True)


def _may_go_on(data: bytes) -> bool:
    """Whether these bytes are a character, or the beginning of one."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        return exc.reason == "unexpected end of data"
    return True


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class TextRules:
    """What shows of a request's answers: where stop strings end them, though not within the first `min_tokens`, whether
    what ended one shows itself, and whether control tokens do, all or those of `visible`. `goes_on` says that the text
    goes on behind another, so that a space at its beginning is one. `by_token` has texts told token by token,
    `by_character` has it known which tokens at the end are part of a character only."""

    stops: Sequence[str] = ()
    min_tokens: int = 0
    shows_stop: bool = False
    shows_control: bool = False
    visible: frozenset[int] = frozenset()
    goes_on: bool = False
    by_token: bool = False
    by_character: bool = False

    def hides(self, token_id: int, tokenizer: Tokenizer) -> bool:
        return not self.shows_control and tokenizer.is_special(token_id) and token_id not in self.visible


class IncrementalText:
    """Turns the token ids of one choice into text.

    A token's log probability comes out with the text that completes it, so none comes out for text that a stop
    string cut off.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TextRules = TextRules()) -> None:  # noqa: B008 - frozen
        self._tokenizer = tokenizer
        self._rules = rules
        self._stops = StopStrings(rules.stops, shows_found=rules.shows_stop)
        self._decoder = CharacterDecoder()
        self._strip = tokenizer.strips_leading_space and not rules.goes_on
        self._taken = 0
        self._decoded = 0
        self._spared = 0  # characters decoded of the first `min_tokens`
        self._shown = 0
        self._pending: list[tuple[int, TokenText]] = []  # (characters decoded up to its end, token)
        self._unfinished = ""
        self.unfinished_tokens = 0
        """How many tokens at the end are part of a character only, where the rules want that known."""

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[Logprob] | None = None) -> TextDelta:
        """Add tokens. After a delta with `stopped` nothing may be added."""
        pieces: list[str] = []
        for position, token_id in enumerate(token_ids):
            self._taken += 1
            if self._rules.hides(token_id, self._tokenizer):
                self.unfinished_tokens += self.unfinished_tokens > 0
                continue
            data = self._tokenizer.token_bytes(token_id)
            if self._strip:
                data, self._strip = data.removeprefix(b" "), False
            broken, piece = self._decoder.feed(data)
            offset = self._decoded + len(broken)
            self._decoded = offset + len(piece)
            if self._taken <= self._rules.min_tokens:
                self._spared = self._decoded
            pieces.append(self._whole_characters(broken + piece) if self._rules.by_character else broken + piece)
            if logprobs is not None:
                entry = logprobs[position]
                token = TokenText(token_id, data, offset, entry.logprob, entry.top)
                # A token that ends inside of a character waits for the rest of it.
                self._pending.append((self._decoded + self._decoder.is_inside, token))
        return self._show("".join(pieces))

    def finish(self) -> TextDelta:
        """The end of generation: what was held back, an unfinished character as U+FFFD."""
        tail = self._decoder.finish()
        self._decoded += len(tail)
        tail, self._unfinished = self._unfinished + tail, ""
        delta = self._show(tail)
        if not delta.stopped:
            delta.text += self._stops.flush()
            delta.tokens += [token for _, token in self._pending]
            self._pending.clear()
        return delta

    def replay(self, token_ids: Sequence[int], held: Sequence[Logprob] = ()) -> bool:
        """Take tokens whose text has been shown, as far as it can be: what follows goes on behind it.

        `held` are the log probabilities of the last tokens that are not hidden, as many as have to come out
        yet. Returns whether a stop string has ended the text. Raises ValueError when there are more than tokens.
        """
        hides, tokenizer = self._rules.hides, self._tokenizer
        start, missing = len(token_ids), len(held)
        while missing:
            if not start:
                raise ValueError("more log probabilities are held back than there are tokens")
            start -= 1
            missing -= not hides(token_ids[start], tokenizer)
        if self.feed(token_ids[:start]).stopped:
            return True
        left = iter(held)
        tail = token_ids[start:]
        logprobs = [Logprob(0.0) if hides(token_id, tokenizer) else next(left) for token_id in tail]
        return self.feed(tail, logprobs if held else None).stopped

    def held_tokens(self) -> list[TokenText]:
        """Tokens with log probabilities that have to come out yet. Where the rules go by character, those of an
        unfinished one are not among them."""
        shown_by = self._decoded if self._rules.by_character else math.inf
        return [token for end, token in self._pending if end <= shown_by]

    def _whole_characters(self, piece: str) -> str:
        """The text of tokens that end with a whole character: others wait for the rest of it, text and all."""
        piece = self._unfinished + piece
        is_inside = self._decoder.is_inside
        self.unfinished_tokens = self.unfinished_tokens + 1 if is_inside else 0
        self._unfinished = piece if is_inside else ""
        return "" if is_inside else piece

    def _show(self, text: str) -> TextDelta:
        shown, stopped = self._stops.feed(text, spared=self._spared)
        self._shown += len(shown)
        ready = 0
        while ready < len(self._pending) and self._pending[ready][0] <= self._shown:
            ready += 1
        tokens = [token for _, token in self._pending[:ready]]
        del self._pending[:ready]
        return TextDelta(shown, tokens, stopped)


def decode(tokenizer: Tokenizer, token_ids: Sequence[int], *, shows_control: bool = False) -> str:
    """The text of whole token ids; that of control tokens only with `shows_control`."""
    text = IncrementalText(tokenizer, TextRules(shows_control=shows_control))
    return text.feed(token_ids).text + text.finish().text
