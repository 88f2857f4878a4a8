"""Grammars: compiled beside the pipeline, which finds them compiled when a request that has one begins.

The pipeline's tokenizer holds the compiler (xgrammar) and what it has compiled, and a request's first step would wait
for it: seconds, and everybody with it. So another pipeline with the same tokenizer and a model that computes nothing
is asked first, in a thread: there it does not hold Python's lock. docs/adr/0016 has the figures.
"""

import ctypes
import hashlib
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

from chatfleet.engines.base import Fault, RequestRefused
from chatfleet.engines.openvino.model_files import first_line
from chatfleet.engines.openvino.vocabulary import vocabulary_tokenizer

COMPILE_TIMEOUT_S: Final = 30.0
"""Most grammars take 50 ms with 152,000 tokens on 2 cores that are free, and `[^"]{0,200}` 6 s."""

POLL_S: Final = 0.01
"""How often to ask whether a grammar is compiled, where nothing else is to do."""

MEMORY_BYTES: Final = 1_000_000_000
"""What compiled grammars may take: with 152,000 tokens an object of ten properties takes 2 MB."""

_BYTES_PER_TOKEN: Final = 14
"""Of the vocabulary, for such an object: reckoned with where the C library does not say."""

_THREADS: Final = 2
"""So that a grammar that takes long does not hold up all others."""

_MOST_OUTCOMES: Final = 2000
_NICENESS: Final = 10
"""Of the compiling threads. xgrammar starts eight: with 0 the answers beside them would get little, and with 19 a
grammar of 0.1 s took up to 4 s on a busy machine."""
_LOG_PREFIX = re.compile(r"^\[\d+:\d+:\d+\] \S+:\d+: ")


class Grammars:
    """The compiler of one pipeline, which is made with this `tokenizer`."""

    def __init__(self, token_bytes: Sequence[bytes], vocab_size: int) -> None:
        """`token_bytes` are what tokens stand for, by id; the others of `vocab_size` match nothing. Raises
        RuntimeError where the library takes no such vocabulary."""
        vocabulary = [*token_bytes[:vocab_size], *[b""] * (vocab_size - len(token_bytes))]
        self.end_token_id: Final = max((i for i, token in enumerate(vocabulary) if not token), default=vocab_size - 1)
        """What a request that no token is to stop ends with: the pipeline knows no other end of a grammar."""
        self.tokenizer: Final = vocabulary_tokenizer(vocabulary, eos_token_id=self.end_token_id)
        self._usual_bytes = vocab_size * _BYTES_PER_TOKEN
        self._compilers: SimpleQueue[Any] = SimpleQueue()
        for _ in range(_THREADS):
            self._compilers.put(self._make_compiler(vocab_size))
        self._outcomes: OrderedDict[bytes, tuple[Future[None], float]] = OrderedDict()
        self._used_bytes = 0
        self._compile('root ::= "a"')  # the first sorts the vocabulary
        self._executor = ThreadPoolExecutor(_THREADS, "grammars", initializer=_yield_to_others)

    @property
    def used(self) -> float:
        """The share of MEMORY_BYTES that is taken. What is compiled stays for as long as the pipeline."""
        return self._used_bytes / MEMORY_BYTES

    def ready(self, grammar: str) -> bool:
        """Whether the pipeline can begin with it at once. The first call begins the compiling; ask again.

        Raises RequestRefused for one that is wrong, and for one that takes longer than COMPILE_TIMEOUT_S.
        """
        key = hashlib.blake2b(grammar.encode(), digest_size=16).digest()
        if key not in self._outcomes:
            begun = time.monotonic()
            self._outcomes[key] = self._executor.submit(self._compile_in_time, grammar, begun), begun
            if len(self._outcomes) > _MOST_OUTCOMES:
                self._outcomes.popitem(last=False)
        self._outcomes.move_to_end(key)
        future, begun = self._outcomes[key]
        if not future.done():
            if time.monotonic() - begun > COMPILE_TIMEOUT_S:
                raise _too_slow()
            return False
        try:
            future.result()
        except TimeoutError as exc:
            del self._outcomes[key]
            raise _too_slow() from exc
        except Exception as exc:
            raise RequestRefused(
                Fault(message=f"The grammar cannot be compiled: {_reason(exc)}.", kind="invalid", param="grammar")
            ) from exc
        return True

    def settings(self, grammar: str, *, ignore_eos: bool) -> dict[str, Any]:
        """The attributes of a `GenerationConfig` that a request with this grammar has beside its others."""
        structured = genai.StructuredOutputConfig()
        structured.grammar = grammar
        settings: dict[str, Any] = {"structured_output_config": structured}
        if ignore_eos:
            end = self.end_token_id
            settings |= {"eos_token_id": end, "stop_token_ids": {end}, "ignore_eos": False}
        return settings

    def close(self) -> None:
        """Forget what has not begun. Does not wait for what has."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _make_compiler(self, vocab_size: int) -> Any:
        with TemporaryDirectory() as name:
            folder = Path(name)
            ov.serialize(_nothing(vocab_size), folder / "openvino_model.xml", folder / "openvino_model.bin")
            properties = {"ATTENTION_BACKEND": "SDPA", "INFERENCE_NUM_THREADS": 1}
            return genai.LLMPipeline(str(folder), self.tokenizer, "CPU", **properties)

    def _compile_in_time(self, grammar: str, begun: float) -> None:
        if time.monotonic() - begun > COMPILE_TIMEOUT_S:
            raise TimeoutError
        self._compile(grammar)

    def _compile(self, grammar: str) -> None:
        config = genai.GenerationConfig()
        settings = {"max_new_tokens": 1, "apply_chat_template": False} | self.settings(grammar, ignore_eos=True)
        for name, value in settings.items():
            setattr(config, name, value)
        compiler = self._compilers.get()
        before = _allocated_bytes()
        try:
            compiler.generate(ov.Tensor(np.zeros((1, 1), np.int64)), config)
        finally:
            self._compilers.put(compiler)
            after = _allocated_bytes()
            self._used_bytes += max(0, after - before) if after and before else self._usual_bytes


def _nothing(vocab_size: int) -> ov.Model:
    """A model that finds every token as likely as any other."""
    inputs = [
        ops.parameter([-1, -1], ov.Type.i64),
        ops.parameter([-1, -1], ov.Type.i64),
        ops.parameter([-1], ov.Type.i32),
    ]
    for parameter, name in zip(inputs, ("input_ids", "attention_mask", "beam_idx"), strict=True):
        parameter.output(0).set_names({name})
    token_ids = ops.convert(ops.unsqueeze(inputs[0], ops.constant(np.int64(2))), ov.Type.f32)
    logits = ops.result(ops.multiply(token_ids, ops.constant(np.zeros((1, 1, vocab_size), np.float32))))
    logits.output(0).set_names({"logits"})
    return ov.Model([logits], inputs, "nothing")


def _too_slow() -> RequestRefused:
    message = (
        f"The grammar was not compiled within {COMPILE_TIMEOUT_S:g} s. Give it fewer or smaller bounds on lengths "
        "(maxLength, maxItems, {m,n}), or try again later where the engine has much to compile."
    )
    return RequestRefused(Fault(message=message, kind="invalid", param="grammar"))


def _reason(exc: Exception) -> str:
    return _LOG_PREFIX.sub("", first_line(exc)).rstrip(".")


def _yield_to_others() -> None:
    """The threads that a compilation starts have the priority of the one that it runs in."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Mallinfo2(ctypes.Structure):
    """mallinfo(3): the fifth field is of what was mapped, the eighth of the rest."""

    _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(1, 11)]


def _allocated_bytes() -> int:
    """What the C library has given out; 0 where it does not say."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.field8 + info.field5)
