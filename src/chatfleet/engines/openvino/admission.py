"""When a waiting request may enter the pipeline.

The pipeline lets decoding requests take KV blocks from younger ones, but a prompt that is being read takes
from nobody; and a step in which nothing could be scheduled ends *every* request as IGNORED. So a request
enters only when its prompt and all that runs fit the pool for as long as the prompts need to be read: then
memory runs short only among decoding requests, where the oldest can always go on and the pipeline
recomputes the others later.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A request's tokens: in the KV cache when all is computed (`now`), at the most (`end`), still to be read."""

    now: int
    end: int
    unread: int


@dataclass(frozen=True)
class Pool:
    """The pipeline's limits: KV blocks and their size, tokens per step, requests at once."""

    blocks: int
    block_tokens: int
    step_tokens: int
    max_running: int

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def admits(self, candidate: Need, running: Iterable[Need]) -> bool:
        """Whether `candidate` may join `running`. Alone it always may: `end` is within the pool."""
        needs = [*running, candidate]
        if len(needs) == 1:
            return True
        if len(needs) > self.max_running:
            return False
        # Prompts get what the decoding requests leave of a step; meanwhile each of these grows by a token a step.
        decoding = sum(need.unread == 0 for need in needs)
        steps = sum(need.unread for need in needs) // max(1, self.step_tokens - decoding) + 1
        growth = steps + self.block_tokens
        return sum(self.blocks_for(min(need.now + growth, need.end)) for need in needs) <= self.blocks
