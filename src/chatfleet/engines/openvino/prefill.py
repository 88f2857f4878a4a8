"""How many tokens one step may compute, so that it stays under 150 ms where the model allows.

While a step runs nothing else happens: no token of anybody, no cancellation, no new request. So prompts
are read in parts. A step costs a fixed part (all weights cross the memory bus once) and a part per token;
on 2 cores with avx512_bf16 a 0.39B model takes 33 ms + 0.7 ms per token: 128 tokens in 123 ms, 256 in 210 ms.
The price is throughput: with 64 tokens a step 16 prompts of 64 tokens, answered with 64 each, take a quarter longer
than with 256. docs/adr/0015 has the figures.
"""

import time
from collections.abc import Mapping

STEP_TARGET_S = 0.150

MIN_STEP_TOKENS, MAX_STEP_TOKENS = 32, 256
"""Under 32 the fixed part dominates: a slow model would take twice the time for a prompt and gain little.
Over 256 nothing gets faster: 1160 tokens/s there, 1050 with 512."""

_PROBE_TOKENS = (16, 128)
_PROBE_RUNS = 9
_OTHER_WORK = 2.0
"""A token's time in the model over that in its products alone: 0.70 ms against 0.33 there (attention, norms,
rotary embeddings, narrow key and value products). Less for larger models, where a step then ends early."""

_PROBE_PARAMETERS = 48_000_000
"""Enough that the probe's packed weights (96 MB) do not stay in the caches, little enough to compile in 0.3 s."""


def step_tokens(*, fixed_s: float, per_token_s: float) -> int:
    """The most tokens, a power of two, of a step that takes fixed_s + per_token_s for each of them.

    A power of two, so that two starts on one machine agree though their measurements differ, and with
    room on average for what was not measured: attention over a long context, sampling, scheduling.
    """
    room = (STEP_TARGET_S - fixed_s) / max(per_token_s, 1e-9)
    tokens = MIN_STEP_TOKENS
    while tokens * 2 <= min(room, MAX_STEP_TOKENS):
        tokens *= 2
    return tokens


def measure_step_cost(
    *, hidden_size: int, ffn_size: int, parameters: int, device: str, properties: Mapping[str, str]
) -> tuple[float, float]:
    """(fixed_s, per_token_s) of a model with `parameters` weights, from a few matrix products of its shape.

    Costs about half a second; a model under 20M parameters is not worth it and counts as free.
    """
    if parameters < 20_000_000:
        return 0.0, 0.0
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    tokens = ops.parameter([-1, hidden_size], ov.Type.f32)
    node, probed = tokens, 0
    random = np.random.default_rng(0)
    while probed < min(_PROBE_PARAMETERS, parameters):
        for size in ((ffn_size, hidden_size), (hidden_size, ffn_size)):
            weights = random.integers(-8, 8, size, np.int8).astype(np.float16) / np.float16(256)
            node = ops.matmul(node, ops.convert(ops.constant(weights), ov.Type.f32), False, True)
            probed += weights.size
    probe = ov.Core().compile_model(ov.Model([node], [tokens]), device, dict(properties)).create_infer_request()
    few, many = (_least_s(probe, np.zeros((count, hidden_size), np.float32)) for count in _PROBE_TOKENS)
    scale = parameters / probed
    per_token_s = max(0.0, many - few) / (_PROBE_TOKENS[1] - _PROBE_TOKENS[0])
    fixed_s = max(0.0, few - per_token_s * _PROBE_TOKENS[0])
    return fixed_s * scale, per_token_s * scale * _OTHER_WORK


def _least_s(request: "ov.InferRequest", inputs: "np.ndarray") -> float:  # type: ignore[name-defined]  # noqa: F821
    """The least time of several runs: what else the machine does can only add to it."""
    times = []
    for _ in range(_PROBE_RUNS):
        start = time.perf_counter()
        request.infer([inputs])
        times.append(time.perf_counter() - start)
    return min(times)
