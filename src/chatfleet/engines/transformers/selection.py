"""Maxima, orders and sums over the vocabulary, for many rows at once.

All work by blocks of tokens: first what each block has, then inside of the few blocks that matter. That is faster than
torch's own ways on a CPU (for 151936 tokens a row, in ms: the 64 largest 0.13 where `topk` takes 0.27; the likeliest
of float16 0.08 where `max` takes 0.19), and what comes out for a row does not depend on the rows beside it. Of equal
values the one with the lowest token id comes first. A row with NaN gives positions that mean nothing, but are valid.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

_BLOCK: Final = 128


def best(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value of each row [rows], and where it is. NaN where the row has any."""
    block = _reduced(values, torch.amax).max(dim=-1, keepdim=True).indices
    inside, positions = _blocks(values, block, float("-inf"))
    found = inside.max(dim=-1, keepdim=True)
    return found.values[:, 0], positions.gather(1, found.indices)[:, 0]


def top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of float32 `values` in each row, largest first [rows, count], and where they are.

    `count` is at most the length of a row.
    """
    maxima = _reduced(values, torch.amax)
    blocks = _ranked(maxima, min(count, maxima.shape[-1])).sort(dim=-1).values
    inside, positions = _blocks(values, blocks, float("-inf"))
    ranked = _ranked(inside, count)
    return inside.gather(1, ranked), positions.gather(1, ranked)


def ascending(values: torch.Tensor) -> torch.Tensor:
    """Each row of float32 `values`, sorted."""
    if values.device.type == "cpu":  # 0.6 ms for 151936 values; torch's takes 26
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


class RunningSums:
    """Sums of the first so many weights [rows, length] of each row, in `sum_type`. Weights are not negative."""

    def __init__(self, weights: torch.Tensor, sum_type: torch.dtype) -> None:
        self._weights = weights
        self._ends = _reduced(weights, torch.sum).cumsum(dim=-1, dtype=sum_type)  # at the end of each block
        self._below_all = 1 - torch.finfo(sum_type).eps

    @property
    def total(self) -> torch.Tensor:
        """Each row's sum [rows]."""
        return self._ends[:, -1]

    def before(self, positions: torch.Tensor) -> torch.Tensor:
        """The sum of what comes before a position [rows] of each row."""
        block = (positions // _BLOCK)[:, None]
        inside, where = _blocks(self._weights, block, 0)
        inside.masked_fill_(where >= positions[:, None], 0)
        return self._start_of(block)[:, 0] + inside.sum(dim=-1, dtype=self._ends.dtype)

    def search(self, sums: torch.Tensor) -> torch.Tensor:
        """Where the running sum of each row first exceeds `sums` [rows], or the row's last weight over 0."""
        sums = torch.minimum(sums, self.total * self._below_all)[:, None]
        block = torch.searchsorted(self._ends, sums, right=True).clamp_(max=self._ends.shape[-1] - 1)
        inside, where = _blocks(self._weights, block, 0)
        running = inside.cumsum(dim=-1, dtype=self._ends.dtype)
        # The block's own sum was rounded to float32: what is left to find may lie a little behind its end.
        left = torch.minimum(sums - self._start_of(block), running[:, -1:] * self._below_all)
        found = torch.searchsorted(running, left, right=True).clamp_(max=_BLOCK - 1)
        return where.gather(1, found)[:, 0]

    def _start_of(self, block: torch.Tensor) -> torch.Tensor:
        return torch.where(block > 0, self._ends.gather(1, (block - 1).clamp_(min=0)), 0)


def _ranked(values: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` largest, by one integer for each: the float's bits in its order, then the position."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one of both zeros
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (bits << 32) - torch.arange(values.shape[-1], device=values.device)
    return keys.topk(count, dim=-1).indices


def _blocks(values: torch.Tensor, blocks: torch.Tensor, beyond: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What is in these blocks [rows, count] of each row, and where: [rows, count * block]. `beyond` is behind the end,
    with the last position."""
    last = values.shape[-1] - 1
    positions = (blocks[..., None] * _BLOCK + torch.arange(_BLOCK, device=values.device)).flatten(1)
    clamped = positions.clamp(max=last)
    return values.gather(1, clamped).masked_fill_(positions > last, beyond), clamped


def _reduced(values: torch.Tensor, reduction: Callable[..., torch.Tensor]) -> torch.Tensor:
    """One value for each block of each row; the last block may be shorter."""
    whole = values.shape[-1] // _BLOCK * _BLOCK
    reduced = reduction(values[:, :whole].view(values.shape[0], whole // _BLOCK, _BLOCK), dim=-1)
    if whole == values.shape[-1]:
        return reduced
    return torch.cat([reduced, reduction(values[:, whole:], dim=-1, keepdim=True)], dim=-1)
