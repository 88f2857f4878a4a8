"""Steps of fixed shapes, recorded once and replayed: CUDA graphs for the steps in which every sequence has one row.

On a GPU such a step of a small model is mostly the launching of kernels, which a replay does at once. A recording holds
for one number of rows and of pages, so both are padded up to a few sizes: padding rows are nobody's (they write to the
scratch page), padding pages are masked.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from chatfleet.engines.transformers.attention import Group, Step, slot, table
from chatfleet.engines.transformers.pages import SCRATCH_PAGE
from chatfleet.engines.transformers.scheduler import Part

logger = logging.getLogger(__name__)

MAX_ROWS: Final = 512
MAX_RECORDINGS: Final = 64
MAX_PADDING: Final = 4
"""The most pages that are read for one that somebody has."""
_LEAST_PAGES: Final = 8

Forward = Callable[[Step, torch.Tensor], torch.Tensor]
"""From a step and its token ids [1, rows] to the logits [rows, vocabulary]."""

Record = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""From a function to one that does the same over the same memory."""


class CudaRecorder:
    """Makes CUDA graphs, which share their memory: what one leaves is used before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Raises RuntimeError where `compute` does something that cannot be recorded."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compute()  # kernels are chosen and memory is taken in a first run, which cannot be recorded
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@dataclass
class _Recording:
    token_ids: torch.Tensor
    step: Step
    replay: Callable[[], torch.Tensor]


class RecordedSteps:
    """The recordings of a model, the least used of which are dropped."""

    def __init__(self, forward: Forward, record: Record, page_tokens: int, device: torch.device) -> None:
        self._forward = forward
        self._record = record
        self._page_tokens = page_tokens
        self._device = device
        self._recordings: OrderedDict[tuple[int, int], _Recording] = OrderedDict()
        self._works = True

    def run(self, parts: Sequence[Part]) -> torch.Tensor | None:
        """The logits of each part's row [parts, vocabulary], which hold until the next run. None for a step that has to
        be computed the usual way."""
        if not self._works or len(parts) > MAX_ROWS or any(part.end - part.start != 1 for part in parts):
            return None
        rows = padded_rows(len(parts))
        held = [part.start // self._page_tokens + 1 for part in parts]
        pages = padded_pages(max(held))
        if rows * pages > MAX_PADDING * (sum(held) + _LEAST_PAGES * len(held)):
            return None  # one long sequence among short ones: all would be padded to its length
        try:
            recording = self._recording(rows, pages)
        except RuntimeError as exc:
            self._works = False
            self._recordings.clear()
            logger.warning("steps are not recorded as CUDA graphs: %s", str(exc).partition("\n")[0])
            return None
        self._fill(recording, parts, rows, pages)
        return recording.replay()[: len(parts)]

    def _recording(self, rows: int, pages: int) -> _Recording:
        key = (rows, pages)
        if key not in self._recordings:
            if len(self._recordings) >= MAX_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[key] = self._new(rows, pages)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def _new(self, rows: int, pages: int) -> _Recording:
        def zeros(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.long, device=self._device)

        token_ids, positions, tables, slots = zeros(1, rows), zeros(rows), zeros(rows, pages), zeros(rows)

        def step() -> Step:
            # A group anew each time: its masks are made of the positions, within the recording.
            group = Group(0, rows, 1, tables, positions.view(rows, 1), self._page_tokens)
            return Step(groups=[group], slots=slots, positions=positions)

        replay = self._record(lambda: self._forward(step(), token_ids))
        return _Recording(token_ids, step(), replay)

    def _fill(self, recording: _Recording, parts: Sequence[Part], rows: int, pages: int) -> None:
        padding = rows - len(parts)
        token_ids = [part.sequence.token_ids[part.start] for part in parts] + [0] * padding
        positions = [part.start for part in parts] + [0] * padding
        tables = [table(part.sequence.pages, pages) for part in parts] + [table([], pages)] * padding
        slots = [slot(part.sequence.pages, part.start, self._page_tokens) for part in parts]
        slots += [SCRATCH_PAGE * self._page_tokens] * padding
        recording.token_ids.copy_(torch.tensor([token_ids]))
        recording.step.positions.copy_(torch.tensor(positions))
        recording.step.groups[0].tables.copy_(torch.tensor(tables))
        recording.step.slots.copy_(torch.tensor(slots))


def padded_rows(rows: int) -> int:
    """Powers of two up to 8, then multiples of 8 up to 64, then of 32."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 64 else 32
    return -(-rows // step) * step


def padded_pages(pages: int) -> int:
    """Powers of two."""
    return max(_LEAST_PAGES, 1 << (pages - 1).bit_length())
