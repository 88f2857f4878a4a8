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
    """The pipeline's limits: KV blocks and their size, tokens per step, requests at once, how many tokens one that
    decodes may get in a step, and whether prompts are read whole.

    With a draft model (openvino-genai 2026.4.1) a prompt that is read in parts beside other requests gets tokens that
    nobody checked: the draft is through with it before the model is. So prompts that fit a step beside the others are
    read in one, and a longer one is read when it is alone.
    """

    blocks: int
    block_tokens: int
    step_tokens: int
    max_running: int
    decode_tokens: int = 1
    whole_prompts: bool = False

    @property
    def longest(self) -> int:
        """The most tokens of one request, with its answer."""
        return self.blocks * self.block_tokens - (self.decode_tokens - 1)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def admits(self, candidate: Need, running: Iterable[Need]) -> bool:
        """Whether `candidate` may join `running`. Alone it always may: `end` is within the pool."""
        needs = [*running, candidate]
        if len(needs) == 1:
            return True
        if len(needs) > self.max_running:
            return False
        decoding = sum(need.unread == 0 for need in needs) * self.decode_tokens
        unread = sum(need.unread for need in needs)
        if self.whole_prompts and decoding + unread > self.step_tokens:
            return False
        if self.decode_tokens > 1:
            # Where blocks run short, a step with prompt lookup fails (openvino-genai 2026.4.1): nobody may run short.
            return sum(self.blocks_for(need.end + self.decode_tokens) for need in needs) <= self.blocks
        # Prompts get what the decoding requests leave of a step; meanwhile each of these grows by a token a step.
        steps = unread // max(1, self.step_tokens - decoding) + 1
        growth = steps + self.block_tokens
        return sum(self.blocks_for(min(need.now + growth, need.end)) for need in needs) <= self.blocks
