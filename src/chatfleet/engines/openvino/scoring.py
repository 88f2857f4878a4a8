"""Log probabilities of prompts' own tokens (`SamplingParams.prompt_logprobs`)."""

import logging
from collections import deque
from dataclasses import dataclass, field

from chatfleet.engines.base import Fault, GenerateRequest, TokenLogprobs
from chatfleet.engines.openvino.reading import HiddenStates, LogProbabilities, OnDemand, Reading

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""How often to ask whether the graphs are there."""

PromptLogprobs = list[TokenLogprobs | None]


@dataclass
class _Scored:
    """A prompt on its way: of `values` there are as many as tokens have been read behind the first."""

    request: GenerateRequest
    reading: Reading | None = None
    values: list[float] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        return self.request.prompt_token_ids

    @property
    def is_done(self) -> bool:
        return len(self.values) == len(self.prompt) - 1


class PromptScorer:
    """Reads prompts beside the pipeline, one after the other and a part of `step_tokens` at a time.

    Its neighbours wait for one part in every step meanwhile. Requests with the same prompt (the choices of one) are
    read once.
    """

    def __init__(
        self, hidden_states: OnDemand[HiddenStates], log_probabilities: OnDemand[LogProbabilities], *, step_tokens: int
    ) -> None:
        self._hidden_states = hidden_states
        self._log_probabilities = log_probabilities
        self._step_tokens = step_tokens
        self._queue: deque[_Scored] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: GenerateRequest) -> None:
        self._queue.append(_Scored(request))

    def cancel(self, request_id: int) -> None:
        self._queue = deque(scored for scored in self._queue if scored.request.request_id != request_id)

    def clear(self) -> None:
        self._queue.clear()

    def next_step_s(self) -> float | None:
        """As `Backend.next_step_s`."""
        if not self._queue:
            return None
        return 0.0 if self._is_ready() else POLL_S

    def advance(self) -> list[tuple[GenerateRequest, PromptLogprobs | Fault]]:
        """Read a part of the first prompt, and give what came of it: the values of every request with that prompt."""
        if not self._queue or not self._is_ready():
            return []
        first = self._queue[0]
        result: PromptLogprobs | Fault
        try:
            if not first.is_done:
                self._read_part(first)
            if not first.is_done:
                return []
            result = [None, *map(TokenLogprobs, first.prompt[1:], first.values)]
        except Exception as exc:  # a graph that could not be made, or memory: the pipeline's requests are unharmed
            logger.exception("reading a prompt of %d tokens failed", len(first.prompt))
            result = Fault(message=f"The engine could not read the prompt's log probabilities ({type(exc).__name__}).")
        same = [scored.request for scored in self._queue if scored.prompt == first.prompt]
        self._queue = deque(scored for scored in self._queue if scored.prompt != first.prompt)
        return [(request, result) for request in same]

    def _is_ready(self) -> bool:
        ready = [self._hidden_states.ready(), self._log_probabilities.ready()]
        return all(ready)

    def _read_part(self, scored: _Scored) -> None:
        if scored.reading is None:
            scored.reading = self._hidden_states.get().begin()
        start = len(scored.values)
        end = min(start + self._step_tokens, len(scored.prompt) - 1)
        states = scored.reading.read(scored.prompt[start:end])
        scored.values += self._log_probabilities.get().of(scored.prompt[start + 1 : end + 1], states)
