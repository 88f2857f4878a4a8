"""What each engine honours, as a table for a person: from the declarations that the backends themselves use.

Importing it imports no engine's library.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from chatfleet.engines.base import SamplingParams
from chatfleet.engines.openvino.gguf_support import GGUF_ARCHITECTURES
from chatfleet.engines.openvino.sampling import honoured_parameters
from chatfleet.engines.simulated import MAX_TOP_LOGPROBS as SIMULATED_TOP_LOGPROBS
from chatfleet.engines.transformers import HONOURED_PARAMETERS, MAX_TOP_LOGPROBS

YES: Final = "yes"
NO: Final = "-"
NOT_SPECULATING: Final = "not with speculation"

PARAMETERS: Final[Mapping[str, str]] = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "min_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "logit_bias": "logit_bias",
    "bad_words_token_ids": "bad_words",
    "logprobs": "logprobs",
    "prompt_logprobs": "echo with logprobs",
    "grammar": "structured output",
}
"""`SamplingParams` fields and what they are called in a request."""

WITH_EVERY_ENGINE: Final = ("stop", "n")
"""Request parameters that the worker itself sees to."""


class EngineFeatures(NamedTuple):
    """One column. `parameters` are names of `SamplingParams` fields, and `lost_by_speculation` those of them that it
    does not honour with a draft model or prompt lookup; `features` has words for each of the rows that are not request
    parameters, the same rows for every engine."""

    title: str
    engine: str
    parameters: frozenset[str]
    max_top_logprobs: int
    features: Mapping[str, str]
    lost_by_speculation: frozenset[str] = frozenset()

    def rows(self) -> dict[str, str]:
        """Every row's words, in the table's order."""
        words = dict.fromkeys(self.parameters, YES) | dict.fromkeys(self.lost_by_speculation, NOT_SPECULATING)
        honoured = {name: words.get(field, NO) for field, name in PARAMETERS.items()}
        top = f"to {self.max_top_logprobs}" if self.max_top_logprobs else NO
        return {**honoured, "top_logprobs": top, **dict.fromkeys(WITH_EVERY_ENGINE, YES), **self.features}


def _features(
    *,
    speculative: str = NO,
    lora: str = NO,
    models: str,
    devices: str,
) -> dict[str, str]:
    return {
        "continuous batching": YES,
        "prefix cache": YES,
        "embeddings": YES,
        "--deterministic": YES,
        "speculative decoding": speculative,
        "LoRA (--lora)": lora,
        "models": models,
        "devices": devices,
    }


def _lost_by_speculation(*, shifted_logits: bool) -> frozenset[str]:
    with_it, without = (
        honoured_parameters(shifted_logits=shifted_logits, speculates=speculates) for speculates in (True, False)
    )
    return without - with_it


ENGINES: Final = (
    EngineFeatures(
        "openvino (GGUF)",
        "openvino",
        honoured_parameters(shifted_logits=True, speculates=False),
        0,
        _features(
            speculative=YES, lora="qwen2, qwen3 in F16", models=", ".join(GGUF_ARCHITECTURES), devices="CPU, Intel GPU"
        ),
        _lost_by_speculation(shifted_logits=True),
    ),
    EngineFeatures(
        "openvino (IR)",
        "openvino",
        honoured_parameters(shifted_logits=False, speculates=False),
        0,
        _features(speculative=YES, lora=YES, models="IR folders, safetensors by conversion", devices="CPU, Intel GPU"),
        _lost_by_speculation(shifted_logits=False),
    ),
    EngineFeatures(
        "transformers",
        "transformers",
        HONOURED_PARAMETERS,
        MAX_TOP_LOGPROBS,
        _features(models="safetensors, GGUF", devices="CPU, CUDA, XPU, MPS"),
    ),
    EngineFeatures(
        "simulated",
        "simulated",
        frozenset(SamplingParams.__struct_fields__),
        SIMULATED_TOP_LOGPROBS,
        _features(models="none", devices="none"),
    ),
)
