"""The transformers engine: any causal language model that transformers loads, batched continuously, on GPUs and CPUs.

Importing this package is cheap; `backend` imports torch, in the engine process alone.
"""

from typing import Final

import msgspec

from chatfleet.engines.base import SamplingParams

HONOURED_PARAMETERS: Final = frozenset(field.name for field in msgspec.structs.fields(SamplingParams))
"""Every `SamplingParams` field, with any model."""

MAX_TOP_LOGPROBS: Final = 20
