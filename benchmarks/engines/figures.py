"""From the moments of streams to the figures of the table. Nothing here runs anything."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client import Answer


@dataclass(frozen=True)
class Workload:
    """So many streams at once, each with so many tokens in and out. Of a `prefill` only its first token counts."""

    name: str
    streams: int
    prompt_tokens: int
    completion_tokens: int
    prefill: bool = False


@dataclass(frozen=True)
class Summary:
    """The medians of a target's rounds of one workload. Rates are per second, of all streams together; times in
    milliseconds.

    `decode_tokens_per_s` counts the tokens that came while every stream was decoding: after the last stream's first
    token and up to the first stream's end. None where streams were never all at it.
    """

    workload: str
    target: str
    tokens_per_s: float
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float
    first_token_ms: float
    inter_token_p50_ms: float | None
    inter_token_p99_ms: float | None


@dataclass(frozen=True)
class Round(Summary):
    """One workload on one target, once, and what it took."""

    cpu_s: float
    client_cpu_share: float
    rss_mb: float


def figures(
    workload: Workload, target: str, answers: Sequence[Answer], *, cpu_s: float, client_cpu_s: float, rss_mb: float
) -> Round:
    """Of the streams of one round. `client_cpu_s` becomes a share of one core."""
    start_s = min(answer.sent_s for answer in answers)
    took_s = max(answer.done_s for answer in answers) - start_s
    gaps_ms = sorted(gap for answer in answers for gap in _gaps_ms(answer))
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    return Round(
        workload.name,
        target,
        sum(answer.completion_tokens for answer in answers) / took_s,
        decode_rate(answers),
        prompt_tokens / (max(answer.first_s for answer in answers) - start_s),
        1000 * statistics.median(answer.first_s - answer.sent_s for answer in answers),
        quantile(gaps_ms, 0.5),
        quantile(gaps_ms, 0.99),
        cpu_s,
        client_cpu_s / took_s,
        rss_mb,
    )


def decode_rate(answers: Sequence[Answer]) -> float | None:
    """Tokens per second while every stream was decoding; None where that never was.

    A stream's tokens are reckoned from its events, as many to each: some servers send fewer events than tokens.
    """
    begin_s = max(answer.first_s for answer in answers)
    end_s = min(answer.arrivals[-1].at_s if answer.arrivals else math.nan for answer in answers)
    if not begin_s < end_s:
        return None
    tokens = 0.0
    for answer in answers:
        events = sum(arrival.events for arrival in answer.arrivals)
        within = sum(arrival.events for arrival in answer.arrivals if begin_s < arrival.at_s <= end_s)
        tokens += answer.completion_tokens * within / events
    return tokens / (end_s - begin_s)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all are not above; None of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _gaps_ms(answer: Answer) -> list[float]:
    """Between the events of a stream; none between those that came together."""
    gaps: list[float] = []
    for before, arrival in zip(answer.arrivals, answer.arrivals[1:], strict=False):
        gaps += [1000 * (arrival.at_s - before.at_s), *[0.0] * (arrival.events - 1)]
    return gaps


def summaries(rounds: Sequence[Round]) -> dict[tuple[str, str], Summary]:
    """By (workload, target), in the order in which they first came."""
    found: dict[tuple[str, str], Summary] = {}
    for workload, target in dict.fromkeys((one.workload, one.target) for one in rounds):
        of_it = [one for one in rounds if (one.workload, one.target) == (workload, target)]
        found[workload, target] = Summary(
            workload,
            target,
            statistics.median(one.tokens_per_s for one in of_it),
            _median(of_it, lambda one: one.decode_tokens_per_s),
            statistics.median(one.prefill_tokens_per_s for one in of_it),
            statistics.median(one.first_token_ms for one in of_it),
            _median(of_it, lambda one: one.inter_token_p50_ms),
            _median(of_it, lambda one: one.inter_token_p99_ms),
        )
    return found


def _median(rounds: Sequence[Round], figure: Callable[[Round], float | None]) -> float | None:
    known = [value for one in rounds if (value := figure(one)) is not None]
    return statistics.median(known) if known else None
