"""Draws from the distributions of many rows: `temperature`, `min_p`, `top_k`, `top_p`, then a point of what is left.

Rows come in three kinds, by what their settings ask (`Settings.kind`), for each has a way of its own to avoid
reading the vocabulary more often than needed. A row's token does not depend on the rows beside it.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from chatfleet.engines.base import SamplingParams
from chatfleet.engines.transformers import selection

FEW = 64
"""A choice among this many tokens needs no sorted vocabulary."""


class Kind(Enum):
    """How many tokens a row's draw is among."""

    FEW = "few"
    """No more than FEW, by `top_k`."""
    MANY = "many"
    """A number that `top_p` or a large `top_k` limits."""
    ALL = "all"


def kind_of(sampling: SamplingParams) -> Kind:
    if 0 < sampling.top_k <= FEW:
        return Kind.FEW
    return Kind.MANY if sampling.top_k > 0 or sampling.top_p < 1 else Kind.ALL


class Settings(NamedTuple):
    """The settings of rows as columns [rows]; the floats are of the type that sums are of."""

    best: torch.Tensor
    """The largest logit."""
    temperature: torch.Tensor
    min_p: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    point: torch.Tensor
    """What part of the distribution, 0 to 1 (exclusive), lies below the draw."""
    has_min_p: bool
    has_top_p: bool
    has_top_k: bool

    @classmethod
    def of(
        cls,
        settings: Sequence[SamplingParams],
        points: npt.NDArray[np.float64],
        best: torch.Tensor,
        upload: Callable[[npt.NDArray[np.float64]], torch.Tensor],
    ) -> Self:
        rows = [(row.temperature, row.min_p, row.top_p, row.top_k if row.top_k > 0 else 2**31) for row in settings]
        columns = upload(np.concatenate([np.array(rows, dtype=np.float64).T, points[None]]))
        temperature, min_p, top_p, top_k, point = columns.unbind()
        return cls(
            best=best,
            temperature=temperature.float(),
            min_p=min_p.float(),
            top_p=top_p,
            top_k=top_k.long(),
            point=point,
            has_min_p=any(row.min_p > 0 for row in settings),
            has_top_p=any(row.top_p < 1 for row in settings),
            has_top_k=any(row.top_k > 0 for row in settings),
        )

    def of_rows(self, rows: torch.Tensor) -> Self:
        return self._replace(
            best=self.best[rows],
            temperature=self.temperature[rows],
            min_p=self.min_p[rows],
            top_p=self.top_p[rows],
            top_k=self.top_k[rows],
            point=self.point[rows],
        )


def draw(kind: Kind, logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """A token id for each row of float32 `logits`, all of this kind. May change `logits`."""
    if kind is Kind.ALL:
        return _draw_of_all(logits, settings)
    if kind is Kind.FEW:
        return _draw_of_few(logits, settings)
    if settings.has_top_k or logits.device.type != "cpu":  # asking whether the few suffice would wait for the device
        return _draw_of_sorted(logits, settings)
    return _draw_of_nucleus(logits, settings)


def _draw_of_all(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    weights = logits.sub_(settings.best[:, None]).div_(settings.temperature[:, None]).exp_()
    if settings.has_min_p:
        _apply_min_p(weights, settings)
    sums = selection.RunningSums(weights, settings.point.dtype)
    return sums.search(settings.point * sums.total)


def _draw_of_few(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    values, token_ids = _few(logits)
    position = _draw_of_ascending(_weights(values, settings), settings)
    return token_ids.gather(1, position[:, None])[:, 0]


def _draw_of_nucleus(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """As `_draw_of_sorted` without `top_k`, but sorts only rows whose likeliest few have less than `top_p`."""
    values, token_ids = _few(logits)
    weights = _weights(logits, settings)
    if settings.has_min_p:
        _apply_min_p(weights, settings)
    total = selection.RunningSums(weights, settings.point.dtype).total
    few = _weights(values, settings)
    position = _draw_of_ascending(few, settings, total=total)
    chosen = token_ids.gather(1, position[:, None])[:, 0]
    in_few = few.sum(dim=-1, dtype=total.dtype)
    wider = (in_few < settings.top_p * total).nonzero()[:, 0]
    if wider.numel():
        drawn = _draw_of_sorted(logits.index_select(0, wider), settings.of_rows(wider))
        chosen.index_copy_(0, wider, drawn)
    return chosen


def _draw_of_sorted(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    values = selection.ascending(logits)
    position = _draw_of_ascending(_weights(values, settings), settings)[:, None]
    value = values.gather(1, position)
    # Which token that is: of those with this value, the last in order has the lowest id.
    behind = torch.searchsorted(values, value, right=True) - 1 - position
    return selection.RunningSums(logits.eq_(value), settings.point.dtype).search(behind[:, 0])


def _draw_of_ascending(weights: torch.Tensor, settings: Settings, *, total: torch.Tensor | None = None) -> torch.Tensor:
    """A position in each row's largest weights, which come in ascending order: truncates these and draws.

    `total` is the sum of what `min_p` leaves of all weights, where `weights` are not all and nothing else truncates.
    """
    first = torch.searchsorted(weights, settings.min_p[:, None])[:, 0]
    if settings.has_top_k:
        first = torch.maximum(first, weights.shape[-1] - settings.top_k)
    sums = selection.RunningSums(weights, settings.point.dtype)
    before = sums.before(first)
    if settings.has_top_p:
        # A token goes if it and all less likely ones together have no more than 1 - top_p.
        kept = sums.total - before
        dropped = (1 - settings.top_p) * kept if total is None else kept - settings.top_p * total
        first = torch.maximum(first, sums.search(before + dropped))
        before = sums.before(first)
    position = torch.maximum(first, sums.search(before + settings.point * (sums.total - before)))
    return position.clamp_(max=weights.shape[-1] - 1)  # not found in a row with NaN


def _few(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest few logits of each row, ascending, and their token ids."""
    values, token_ids = selection.top(logits, min(FEW, logits.shape[-1]))
    return values.flip(-1), token_ids.flip(-1)


def _weights(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Probabilities at the row's temperature, as multiples of the largest."""
    return (logits - settings.best[:, None]).div_(settings.temperature[:, None]).exp_()


def _apply_min_p(weights: torch.Tensor, settings: Settings) -> None:
    # Compared to float32, for on a CPU what reads or writes bools takes ten times as long.
    weights.mul_(torch.ge(weights, settings.min_p[:, None], out=torch.empty_like(weights)))
