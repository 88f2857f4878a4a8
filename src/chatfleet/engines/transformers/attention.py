"""Attention of a step whose rows belong to many sequences, over the pages of their KV cache.

A step's rows are one flat batch: [1, rows] for the model, whose products so serve all sequences at once. Only
attention tells the sequences apart: it is registered with transformers as an attention implementation of its own and
works over *groups* of rows, each group one batched product over as many keys as its longest sequence has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from transformers import Cache
from transformers.masking_utils import causal_mask_function

from chatfleet.engines.transformers.pages import SCRATCH_PAGE
from chatfleet.engines.transformers.scheduler import Part

EXACT_KEYS: Final = 512
"""In exact attention keys come in multiples of this: the block in which CPU kernels sum over them."""


@dataclass(frozen=True)
class LayerShape:
    """One layer's keys and values: heads, their sizes, and where they lie."""

    heads: int
    key_size: int
    value_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return self.heads * (self.key_size + self.value_size) * self.dtype.itemsize


class AttentionWants(NamedTuple):
    """What a layer asks of attention: a scale of the scores (None: by the root of the size), how many keys a row sees
    (itself included), a soft cap of the scores (Gemma 2), and sinks (gpt-oss): a score per head that takes part in the
    softmax and has no value."""

    scaling: float | None = None
    window: int | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None


@dataclass
class Group:
    """Rows `start` to `end` of the step: `sequences` of `queries` rows each, with keys at `tables`.

    `tables` are page numbers [sequences, pages]; `positions` are those of the rows [sequences, queries].
    """

    start: int
    end: int
    queries: int
    tables: torch.Tensor
    positions: torch.Tensor
    page_tokens: int
    masks: dict[tuple[int | None, int, torch.device, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, repeats: int, like: torch.Tensor) -> torch.Tensor:
        """What to add to the scores, [sequences, 1, repeats * queries, keys]: 0 where a row may look, else -inf.

        `window` is how many keys back a row sees, itself included.
        """
        key = (window, repeats, like.device, like.dtype)
        if key not in self.masks:
            keys = torch.arange(self.tables.shape[1] * self.page_tokens, device=self.positions.device)
            visible = keys <= self.positions[..., None]
            if window is not None:
                visible &= keys > self.positions[..., None] - window
            mask = torch.zeros(visible.shape, dtype=like.dtype, device=visible.device).masked_fill_(
                ~visible, -torch.inf
            )
            if self.queries > 1:
                mask = mask.repeat(1, repeats, 1)
            self.masks[key] = mask[:, None].to(like.device)
        return self.masks[key]


@dataclass
class Step:
    """The rows of one step: `groups` for attention, `slots` [rows] where their keys and values go. In an `exact` one
    every row is computed as if it were alone."""

    groups: list[Group]
    slots: torch.Tensor
    positions: torch.Tensor
    exact: bool = False

    def slots_on(self, device: torch.device) -> torch.Tensor:
        if self.slots.device != device:
            self.slots = self.slots.to(device)
        return self.slots


def lay_out(
    parts: Sequence[Part], page_tokens: int, device: torch.device, *, pad_to: int = 0
) -> tuple[list[Part], Step]:
    """The parts in the order of their rows, and the step they make.

    Sequences with one row each share groups with others of about their length; a part with more rows is a group of
    its own. `pad_to` adds rows that belong to nobody, up to that many, and gives every row a sequence of its own with
    keys in multiples of EXACT_KEYS: so each row is computed in the same way whatever else is in the step.
    """
    exact = pad_to > 0
    single = sorted((part for part in parts if part.end - part.start == 1), key=lambda part: part.end)
    ordered = single + [part for part in parts if part.end - part.start > 1]
    slots: list[int] = []
    positions: list[int] = []
    for part in ordered:
        pages = part.sequence.pages
        slots += [slot(pages, position, page_tokens) for position in range(part.start, part.end)]
        positions += range(part.start, part.end)
    padding = max(0, pad_to - len(slots))
    slots += [SCRATCH_PAGE * page_tokens] * padding
    positions += [0] * padding
    position_ids = torch.tensor(positions, device=device)

    groups: list[Group] = []
    row = 0
    for members in _batches(ordered, exact=exact):
        rows = sum(part.end - part.start for part in members)
        length = max(part.end for part in members)
        if exact:
            length = -(-length // EXACT_KEYS) * EXACT_KEYS
        width = -(-length // page_tokens)
        tables = [table(part.sequence.pages, width) for part in members]
        queries = 1 if exact else rows // len(members)
        groups.append(
            Group(
                start=row,
                end=row + rows,
                queries=queries,
                tables=torch.tensor(tables, device=device),
                positions=position_ids[row : row + rows].view(-1, queries),
                page_tokens=page_tokens,
            )
        )
        row += rows
    step = Step(groups=groups, slots=torch.tensor(slots, device=device), positions=position_ids, exact=exact)
    return ordered, step


def slot(pages: Sequence[int], position: int, page_tokens: int) -> int:
    """Where keys and values of a sequence's position lie, counted in tokens from the first page of all."""
    return pages[position // page_tokens] * page_tokens + position % page_tokens


def table(pages: Sequence[int], count: int) -> list[int]:
    """The first `count` pages of a sequence; where it has fewer, scratch pages stand for the rest."""
    return [*pages[:count], *[SCRATCH_PAGE] * (count - len(pages))]


def _batches(ordered: Sequence[Part], *, exact: bool) -> list[list[Part]]:
    """Single rows of about one length together (each is padded to the longest of its group), others alone."""
    batches: list[list[Part]] = []
    for part in ordered:
        last = batches[-1] if batches else []
        if last and not exact and part.end - part.start == 1 and part.end <= 2 * last[0].end + 256:
            last.append(part)
        else:
            batches.append([part])
    return batches


class PagedCache(Cache):
    """Keys and values of all sequences, in pages. Between `begin` and the end of a forward pass it knows the step.

    A layer's store is [pages, page_tokens, heads, key_size + value_size].
    """

    def __init__(self, shapes: Sequence[LayerShape], pages: int, page_tokens: int) -> None:
        super().__init__(layers=[])
        self._shapes = shapes
        # Zeros: what is masked gets no weight, but no weight of NaN would still be NaN.
        self._stores = [
            _zeros((pages, page_tokens, shape.heads, shape.key_size + shape.value_size), shape) for shape in shapes
        ]
        self._step: Step | None = None
        self._layer = 0
        self.wanted = AttentionWants()
        """What was asked of attention last."""

    def free(self) -> None:
        """Give back the memory, whoever still refers to this cache (a traceback, say)."""
        self._stores.clear()

    def begin(self, step: Step) -> None:
        self._step = step

    @property
    def step(self) -> Step:
        assert self._step is not None
        return self._step

    def enter(self, layer: int) -> torch.Tensor:
        """The store of a layer, which attends next."""
        self._layer = layer
        return self._stores[layer]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the rows' keys and values [1, heads, rows, size]. Attention, which follows, reads them from here."""
        self.store(layer_idx, torch.cat((key_states[0], value_states[0]), dim=-1).transpose(0, 1))
        return key_states, value_states

    def store(self, layer: int, rows: torch.Tensor) -> None:
        """Store the rows' keys and values [rows, heads, key_size + value_size] of a layer, which attends next."""
        store = self.enter(layer)
        store.view(-1, *store.shape[2:]).index_copy_(0, self.step.slots_on(store.device), rows)

    def makes_keys_of_what_it_holds(self, key: torch.Tensor) -> bool:
        """Whether `key`, which attention is given, has another shape than what was cached of it."""
        shape = self._shapes[self._layer]
        return key.shape[1] != shape.heads or key.shape[3] != shape.key_size

    def wipe(self, pages: Sequence[int]) -> None:
        """Remove what a sequence has left that went wrong: infinities would reach those that get its pages."""
        for store in self._stores:
            store[list(pages)] = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def attend(self, query: torch.Tensor, wants: AttentionWants) -> torch.Tensor:
        """Attention of all rows, from queries [rows, heads, size] to [rows, heads, value_size]."""
        self.wanted = wants
        outputs = [self._attend_group(group, query, wants) for group in self.step.groups]
        covered = self.step.groups[-1].end
        if covered < len(query):
            outputs.append(outputs[-1].new_zeros((len(query) - covered, *outputs[-1].shape[1:])))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_group(self, group: Group, query: torch.Tensor, wants: AttentionWants) -> torch.Tensor:
        shape, store = self._shapes[self._layer], self._stores[self._layer]
        sequences = len(group.tables)
        tables = group.tables if group.tables.device == store.device else group.tables.to(store.device)
        stored = store.index_select(0, tables.view(-1))
        stored = stored.view(sequences, -1, shape.heads, store.shape[-1]).transpose(1, 2)
        key, value = stored[..., : shape.key_size], stored[..., shape.key_size :]

        _, heads, size = query.shape
        repeats, queries = heads // shape.heads, group.queries
        batch = (group.end - group.start) // queries
        rows = query[group.start : group.end]
        # Heads that share keys become rows that do: one product for all of them.
        if queries == 1:
            grouped = rows.reshape(batch, shape.heads, repeats, size)
        else:
            grouped = rows.view(batch, queries, shape.heads, repeats, size).permute(0, 2, 3, 1, 4)
            grouped = grouped.reshape(batch, shape.heads, repeats * queries, size)
        if batch > sequences:  # exact: every row is a sequence of its own
            key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
        mask = group.mask(wants.window, repeats, query)
        if wants.cap is None and wants.sinks is None:
            attention = torch.nn.functional.scaled_dot_product_attention
            out = attention(grouped, key, value, attn_mask=mask, scale=wants.scaling)
        else:
            out = _attend_plainly(grouped, key, value, mask, wants)
        if queries == 1:
            return out.reshape(batch, heads, -1)
        out = out.view(batch, shape.heads, repeats, queries, -1).permute(0, 3, 1, 2, 4)
        return out.reshape(batch * queries, heads, -1)


def _zeros(size: tuple[int, ...], shape: LayerShape) -> torch.Tensor:
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    # Memory that the system gives when it is first touched: torch.zeros would touch all of it at once.
    return torch.from_numpy(np.zeros(math.prod(size) * shape.dtype.itemsize, np.uint8)).view(shape.dtype).view(size)


def _attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, wants: AttentionWants
) -> torch.Tensor:
    """Attention with soft-capped scores or with sinks, which no fused kernel has. `query` is
    [sequences, heads, rows, size], the rows of one query head after those of another."""
    _, heads, rows, size = query.shape
    scores = torch.matmul(query, key.transpose(2, 3)) * (wants.scaling or size**-0.5)
    if wants.cap is not None:
        scores = torch.tanh(scores / wants.cap) * wants.cap
    scores = scores + mask
    if wants.sinks is not None:
        per_head = wants.sinks.view(heads, -1)
        sinks = per_head.repeat_interleave(rows // per_head.shape[1], 1)[None, :, :, None]
        scores = torch.cat((scores, sinks.to(scores.dtype).expand(len(scores), -1, -1, -1)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights[..., : key.shape[2]], value)


class UnsupportedAttention(Exception):
    """The model asks attention for something that we do not do."""


@dataclass(frozen=True)
class LayerMask:
    """Which keys the model lets a row see: those before it, at most the last `window`, itself included.

    Where it `is_other`, something else.
    """

    window: int | None = None
    is_other: bool = False


def layer_mask(
    *, mask_function: Callable[..., Any], local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> LayerMask:
    """To be registered with transformers in place of what makes masks: layers are given what it returns.

    So a model's windows and chunks are known by what it says of them. They are thousands of tokens long: a trial run
    would not show them.
    """
    if local_size is None:
        return LayerMask(is_other=use_vmap or mask_function is not causal_mask_function)
    keys = torch.tensor([local_size, local_size + 1])
    visible = mask_function(0, 0, torch.tensor(2 * local_size), keys)
    return LayerMask(local_size, is_other=use_vmap or visible.tolist() != [False, True])


_IGNORED: Final = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "logits_to_keep"})


def _is_ours(mask: torch.Tensor | LayerMask | None, window: int | None) -> bool:
    return not isinstance(mask, torch.Tensor) and mask in (None, LayerMask(window))


def attention_over(cache: Callable[[], PagedCache]) -> Callable[..., tuple[torch.Tensor, None]]:
    """The function to register with transformers, over the cache that is in use."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | LayerMask | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        given = [name for name, value in kwargs.items() if value is not None and value is not False]
        wanted = [name for name in given if name not in _IGNORED]
        if not _is_ours(attention_mask, sliding_window) or is_causal is False or wanted:
            raise UnsupportedAttention(", ".join(wanted) or "a mask of its own")
        if cache().makes_keys_of_what_it_holds(key):
            raise UnsupportedAttention("keys that are made anew from what is cached (latent attention)")
        wants = AttentionWants(scaling=scaling, window=sliding_window, cap=softcap, sinks=s_aux)
        return cache().attend(query[0].transpose(0, 1), wants)[None], None

    return attend
