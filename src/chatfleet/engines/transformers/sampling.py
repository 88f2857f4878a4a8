"""From logits to tokens, for a whole batch at a time.

What is done to a row, in vLLM's order: log probabilities are of the model's own distribution; then `logit_bias`,
forbidden tokens (`min_tokens`, bad words), `repetition_penalty` (tokens of prompt and answer),
`frequency_penalty` and `presence_penalty` (tokens of the answer), what the grammar does not allow, `temperature`
(under 1e-5: the likeliest token), `min_p`, `top_k`, `top_p`, and a draw. Among equals the lowest token ids come first,
in all of these.

A draw is by inverse distribution function, at a number that is a hash of the request's seed and the count of tokens
before. It depends on nothing else: the same alone, in any batch, and gone on with later.

Rows share tensor operations and pay for what they ask: one that is greedy and otherwise plain takes part in one
argmax, one with a `top_k` up to 64 in a choice among so many. Only a larger one, or `top_p`, sorts the
vocabulary (on a CPU not even that, where the 64 likeliest tokens have `top_p` of the sum). Penalties and biases are
kept by token and not as rows of the vocabulary, which are read as a whole no more often than that needs. What comes
back from the device comes in one transfer, and what goes there does not wait for it.
"""

import secrets
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from chatfleet.engines.base import GREEDY_BELOW, Fault, SamplingParams, TokenLogprobs
from chatfleet.engines.matching import Matcher
from chatfleet.engines.transformers import drawing, selection

NOT_NUMBERS: Final = (
    "The model's output is not a number (NaN or infinite), so no token can be chosen. Its weights may be damaged, or "
    "too large for the data type: start the worker with --dtype float32 or bfloat16."
)
NOTHING_LEFT: Final = (
    "No token is left to choose: 'logit_bias', 'bad_words', 'min_tokens' or the penalties exclude all of them that the "
    "output's format allows. Loosen one of these."
)

_CHUNK_BYTES: Final = 16 * 10**6
"""The most logits, in float32, that are worked on at a time: larger tensors are new pages of memory each time, which
takes twice as long (64 rows of 151936), and 2000 positions of a prompt are 1.2 GB."""
_DEVICE_CHUNK_BYTES: Final = 512 * 10**6
"""The same where memory is not the host's, and every chunk is a transfer."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Sampled(NamedTuple):
    """A step's tokens, by row. Where `faults` has a message the row has no token: its id (0) means nothing."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    faults: list[str | None]


class _TokenCounts:
    """Distinct tokens, each with how often it is in the answer; those of the prompt alone have 0."""

    def __init__(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
        said, counts = np.unique(np.array(output_token_ids, dtype=np.int64), return_counts=True)
        silent = np.setdiff1d(np.array(prompt_token_ids, dtype=np.int64), said)
        ids = np.concatenate([said, silent])
        self._places = {token_id: place for place, token_id in enumerate(ids.tolist())}
        self._ids = np.pad(ids, (0, 64))
        self._counts = np.pad(counts.astype(np.float32), (0, silent.size + 64))

    @property
    def ids(self) -> Integers:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Floats:
        return self._counts[: len(self._places)]

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == self._ids.size:
            self._ids = np.pad(self._ids, (0, place))
            self._counts = np.pad(self._counts, (0, place))
        self._ids[place] = token_id
        self._counts[place] += 1


class _BadWords:
    """Which tokens may not come next, by the tokens of the answer."""

    def __init__(self, words: tuple[tuple[int, ...], ...]) -> None:
        self._always = [word[0] for word in words if len(word) == 1]
        self._behind: dict[int, list[tuple[list[int], int]]] = {}
        for word in words:
            if len(word) > 1:
                self._behind.setdefault(word[-2], []).append((list(word[:-1]), word[-1]))
        self._longest = max((len(word) - 1 for word in words), default=0)
        self._last: list[int] = []

    def append(self, token_ids: Sequence[int]) -> None:
        self._last = [*self._last, *token_ids][-self._longest :] if self._longest else []

    def forbidden(self) -> list[int]:
        if not self._last:
            return self._always
        last = self._last
        begun = self._behind.get(last[-1], ())
        return [*self._always, *(end for start, end in begun if last[-len(start) :] == start)]


class RowState:
    """What the choice of a request's next token depends on, besides logits. Made when the request is admitted.

    `output_token_ids` are the answer's tokens so far: the state is as if each had been appended. Token ids that the
    model does not have are disregarded. A request without a seed gets a random one. `matcher` is where the answer is in
    its grammar, behind `output_token_ids`.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        matcher: Matcher | None = None,
    ) -> None:
        self.sampling = sampling
        self.matcher = matcher
        self.seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
        self.generated = len(output_token_ids)
        self.is_greedy = sampling.temperature < GREEDY_BELOW
        repeats = sampling.repetition_penalty != 1
        penalised = repeats or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        self.counts = _TokenCounts(prompt_token_ids if repeats else (), output_token_ids) if penalised else None
        self.bias_ids = np.array(list(sampling.logit_bias.keys()), dtype=np.int64)
        self.bias_values = np.array(list(sampling.logit_bias.values()), dtype=np.float32)
        self._bad_words = _BadWords(sampling.bad_words_token_ids) if sampling.bad_words_token_ids else None
        if self._bad_words is not None:
            self._bad_words.append(output_token_ids)
        self._is_edited_always = penalised or bool(sampling.logit_bias or sampling.bad_words_token_ids or matcher)

    @property
    def is_edited(self) -> bool:
        """Whether the next token's logits are changed before they are compared."""
        return self._is_edited_always or (not self._may_stop and bool(self.sampling.stop_token_ids))

    @property
    def _may_stop(self) -> bool:
        return self.generated >= self.sampling.min_tokens

    def append(self, token_id: int) -> None:
        """Say that `token_id` is the answer's next token."""
        if self.matcher is not None and not (self._may_stop and token_id in self.sampling.stop_token_ids):
            self.matcher.advance(token_id)
        self.generated += 1
        if self.counts is not None:
            self.counts.add(token_id)
        if self._bad_words is not None:
            self._bad_words.append((token_id,))

    def forbidden(self) -> list[int]:
        """The tokens that may not come next, whatever the grammar says."""
        token_ids = [] if self._bad_words is None else self._bad_words.forbidden()
        if not self._may_stop and self.matcher is None:
            token_ids = [*token_ids, *self.sampling.stop_token_ids]
        return token_ids

    def allowed(self) -> bytes | None:
        """The tokens that the grammar allows, as `Matcher.allowed` gives them; None where these are all."""
        if self.matcher is None or self.is_whole:
            return None
        return self.matcher.allowed(may_stop=self._may_stop)

    @property
    def is_whole(self) -> bool:
        """Whether the grammar allows no other token behind these."""
        return self.matcher is not None and self.matcher.is_finished

    @property
    def fault(self) -> Fault | None:
        """Why the answer cannot go on within its grammar."""
        return None if self.matcher is None else self.matcher.fault


class Sampler:
    """Chooses tokens. Holds no state of any request, so rows may come and go as they like."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._chunk_bytes = _chunk_bytes(device)
        # Running sums in float64, so that they do not depend on what is summed beside; not every device has it.
        self._sum_type = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
        self._of_byte = torch.zeros(256, 8, device=device).masked_fill_(bits == 0, float("-inf"))
        """What a mask's byte adds to eight logits."""

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, rows: Sequence[RowState]) -> Sampled:
        """One token for each row. `logits` are [rows, vocabulary], of any float type, and are not changed.

        A row whose logits are no numbers, or that excludes every token, has a fault; the others are unharmed.
        """
        if not rows:
            return Sampled([], [], [])
        count = max(1, self._chunk_bytes // (4 * self._vocab_size))
        chunks = [
            self._sample(logits[start : start + count], rows[start : start + count])
            for start in range(0, len(rows), count)
        ]
        return Sampled(*(list(chain.from_iterable(lists)) for lists in zip(*chunks, strict=True)))

    def _sample(self, logits: torch.Tensor, rows: Sequence[RowState]) -> Sampled:
        best, chosen = selection.best(logits)
        best = best.float()
        left = best
        worked = [index for index, row in enumerate(rows) if row.is_edited or not row.is_greedy]
        if worked:
            places = self._upload(np.array(worked, dtype=np.int64))
            work, states = logits.index_select(0, places).float(), [rows[index] for index in worked]
            work_left, work_chosen = self._choose(work, states, best[places], chosen[places])
            left = left.index_copy(0, places, work_left)
            chosen = chosen.index_copy(0, places, work_chosen)
        wanting = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
        wanted = [rows[index].sampling.logprobs or 0 for index in wanting]
        columns = [best, left, chosen]
        if wanting:
            places = self._upload(np.array(wanting, dtype=np.int64))
            columns += _logprobs(logits.index_select(0, places), chosen[places], min(max(wanted), logits.shape[-1]))
        host = _download(columns)
        are_numbers, are_left = np.isfinite(host[0]).tolist(), np.isfinite(host[1]).tolist()
        faults = [
            NOT_NUMBERS if not is_number else None if is_left else NOTHING_LEFT
            for is_number, is_left in zip(are_numbers, are_left, strict=True)
        ]
        token_ids: list[int] = host[2].tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        if wanting:
            found = _token_logprobs([token_ids[index] for index in wanting], wanted, *host[3:])
            for index, entry in zip(wanting, found, strict=True):
                logprobs[index] = entry
        for index, fault in enumerate(faults):
            if fault is not None:
                token_ids[index], logprobs[index] = 0, None
        return Sampled(token_ids, logprobs, faults)

    def _choose(
        self, work: torch.Tensor, rows: Sequence[RowState], best: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best logits and the chosen tokens of rows that are not plain. Changes `work`."""
        if any(row.is_edited for row in rows):
            self._edit(work, rows)
            best, chosen = selection.best(work)
        groups: dict[drawing.Kind, list[int]] = {}
        for index, row in enumerate(rows):
            if not row.is_greedy:
                groups.setdefault(drawing.kind_of(row.sampling), []).append(index)
        for kind, members in groups.items():
            places = self._upload(np.array(members, dtype=np.int64))
            drawn = [rows[index] for index in members]
            settings = drawing.Settings.of([row.sampling for row in drawn], _points(drawn), best[places], self._upload)
            logits = work if len(members) == len(rows) else work.index_select(0, places)
            chosen = chosen.index_copy(0, places, drawing.draw(kind, logits, settings))
        return best, chosen

    def _edit(self, work: torch.Tensor, rows: Sequence[RowState]) -> None:
        """Biases, forbidden tokens and penalties, each as one operation on single elements; then grammars."""
        flat = work.view(-1)
        biased = [(index, row) for index, row in enumerate(rows) if row.bias_ids.size]
        if biased:
            places, known = self._places([(index, row.bias_ids) for index, row in biased])
            values = np.concatenate([row.bias_values for _, row in biased])[known]
            flat.index_add_(0, self._upload(places), self._upload(values))
        forbidden = [(index, np.array(row.forbidden(), dtype=np.int64)) for index, row in enumerate(rows)]
        if any(token_ids.size for _, token_ids in forbidden):
            flat.index_fill_(0, self._upload(self._places(forbidden)[0]), float("-inf"))
        counted = [
            (index, row.sampling, row.counts.ids, row.counts.counts)
            for index, row in enumerate(rows)
            if row.counts is not None
        ]
        if counted:
            places, known = self._places([(index, ids) for index, _, ids, _ in counted])
            counts = np.concatenate([counts for *_, counts in counted])
            lengths = [ids.size for _, _, ids, _ in counted]
            penalties = np.array([row.repetition_penalty for _, row, _, _ in counted], dtype=np.float32)
            frequency = np.array([row.frequency_penalty for _, row, _, _ in counted], dtype=np.float32)
            presence = np.array([row.presence_penalty for _, row, _, _ in counted], dtype=np.float32)
            minus = np.repeat(frequency, lengths) * counts + np.repeat(presence, lengths) * (counts > 0)
            index = self._upload(places)
            factor = self._upload(np.repeat(penalties, lengths)[known])
            values_now = flat.index_select(0, index)
            values_now = torch.where(values_now > 0, values_now / factor, values_now * factor)
            flat.index_copy_(0, index, values_now - self._upload(minus[known]))
        masks = [(index, mask) for index, row in enumerate(rows) if (mask := row.allowed()) is not None]
        if masks:
            self._mask(work, masks)

    def _mask(self, work: torch.Tensor, masks: Sequence[tuple[int, bytes]]) -> None:
        """Leave each row (index, mask) what the mask allows. By a table of bytes that takes 0.5 ms for 8 rows of 151936
        on a CPU, by unpacked bits and `masked_fill_` twice as long."""
        mask = np.frombuffer(bytearray().join(mask for _, mask in masks), dtype=np.uint8).reshape(len(masks), -1)
        added = torch.nn.functional.embedding(self._upload(mask).int(), self._of_byte).flatten(1)[:, : self._vocab_size]
        if len(masks) == len(work):
            work.add_(added)
        else:
            work.index_add_(0, self._upload(np.array([index for index, _ in masks], dtype=np.int64)), added)

    def _places(self, token_ids: Sequence[tuple[int, Integers]]) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """Where the tokens of each (row, tokens) are among all logits; and which of them the model has."""
        ids = np.concatenate([ids for _, ids in token_ids])
        known = (ids >= 0) & (ids < self._vocab_size)
        starts = np.repeat([row * self._vocab_size for row, _ in token_ids], [ids.size for _, ids in token_ids])
        return (ids + starts)[known], known

    def _upload(self, values: npt.NDArray[Any]) -> torch.Tensor:
        if values.dtype == np.float64 and self._sum_type == torch.float32:
            values = values.astype(np.float32)
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # from pinned memory, else the copy waits for all that the device has to do
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def prompt_logprobs(logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """What the model held of each token, `logits` [tokens, vocabulary] being those before it, and of the `top` best."""
    result: list[TokenLogprobs] = []
    top = min(top, logits.shape[-1])
    chunk = max(1, _chunk_bytes(logits.device) // (4 * logits.shape[-1]))
    for start in range(0, len(token_ids), chunk):
        part = list(token_ids[start : start + chunk])
        chosen = torch.tensor(part, dtype=torch.int64, device=logits.device)
        with torch.inference_mode():
            host = _download(_logprobs(logits[start : start + chunk], chosen, top))
        result += _token_logprobs(part, [top] * len(part), *host)
    return result


def _chunk_bytes(device: torch.device) -> int:
    return _CHUNK_BYTES if device.type == "cpu" else _DEVICE_CHUNK_BYTES


def _logprobs(logits: torch.Tensor, chosen: torch.Tensor, top: int) -> list[torch.Tensor]:
    """Log probabilities of the chosen tokens [n] and of the best [n, top], and the best tokens [n, top]."""
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    values, token_ids = selection.top(logprobs, top)
    return [logprobs.gather(1, chosen[:, None])[:, 0], values, token_ids]


def _token_logprobs(
    token_ids: Sequence[int],
    wanted: Sequence[int],
    chosen: npt.NDArray[Any],
    best: npt.NDArray[Any],
    best_ids: npt.NDArray[Any],
) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(token_id, logprob, list(zip(ids[:count], values[:count], strict=True)))
        for token_id, count, logprob, values, ids in zip(
            token_ids, wanted, chosen.tolist(), best.tolist(), best_ids.tolist(), strict=True
        )
    ]


def _download(tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    """Tensors of float32 or token ids as arrays, in one transfer."""
    words = [(part if part.is_floating_point() else part.to(torch.int32)).contiguous() for part in tensors]
    host = torch.cat([part.view(torch.int32).reshape(-1) for part in words]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in words])[:-1]
    return [
        array.view(np.float32 if part.is_floating_point() else np.int32).reshape(part.shape)
        for array, part in zip(np.split(host, ends), words, strict=True)
    ]


def _points(rows: Sequence[RowState]) -> npt.NDArray[np.float64]:
    """A number from 0 to 1 (exclusive) for each row: splitmix64 of its seed, at its count of tokens."""
    seeds = np.array([row.seed for row in rows], dtype=np.uint64)
    counts = np.array([row.generated + 1 for row in rows], dtype=np.uint64)
    bits = _mix(_mix(seeds) + counts * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(12)).astype(np.float64) / 2**52


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finalizer."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
