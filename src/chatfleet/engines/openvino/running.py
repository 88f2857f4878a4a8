"""A request on its way through the pipeline."""

from dataclasses import dataclass
from typing import Any

from chatfleet.engines.base import Fault, GenerateRequest, TokenLogprobs
from chatfleet.engines.openvino.admission import Need
from chatfleet.engines.openvino.scoring import PromptLogprobs


@dataclass
class Running:
    """A request in the pipeline. `token_ids` are those of the answer so far: given, or generated, restarts included.

    The first `inherited` of them were there before the pipeline had the request as it is now. The last `repeated` of
    these it generates once more, where it cannot go on behind them.
    """

    request: GenerateRequest
    token_ids: list[int]
    inherited: int
    prompt_logprobs: PromptLogprobs | None = None
    """Still to be given, with the first delta."""
    handle: Any = None
    repeated: int = 0
    restarts: int = 0

    @property
    def need(self) -> Need:
        prompt = len(self.request.prompt_token_ids)
        now = prompt + len(self.token_ids)
        return Need(
            now=now,
            end=prompt + self.request.sampling.max_tokens,
            unread=now if len(self.token_ids) == self.inherited else 0,
        )

    @property
    def can_restart(self) -> bool:
        """Whether it can go on behind its tokens: a grammar is of what comes behind the inherited ones."""
        return self.request.sampling.grammar is None or len(self.token_ids) == self.inherited

    def is_mark(self, token_id: int) -> bool:
        """Whether the token that ended the answer is none of those that may, but the mark of a grammar's end."""
        sampling = self.request.sampling
        return sampling.grammar is not None and token_id not in sampling.stop_token_ids

    def compare(self, token_ids: list[int], *, ended: bool) -> Fault | None:
        """Take tokens that are generated once more. Those that differ, or end the answer, are a fault."""
        start = self.inherited - self.repeated
        count = min(len(token_ids), self.repeated)
        self.repeated -= count
        if token_ids[:count] == self.token_ids[start : start + count] and not (ended and self.repeated):
            return None
        return Fault(message="The engine generated other tokens than the ones that the answer has begun with.")

    def logprobs(self, token_ids: list[int], logprobs: list[float]) -> list[TokenLogprobs] | None:
        """What the request gets to know of its new tokens."""
        if self.request.sampling.logprobs is None or not token_ids:
            return None
        return [TokenLogprobs(token_id, value) for token_id, value in zip(token_ids, logprobs, strict=True)]
