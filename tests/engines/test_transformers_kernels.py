"""The native kernels give what torch's operations give, and models give with them what they give without."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from chatfleet.engines.transformers import fused
from chatfleet.engines.transformers import kernels as kernels_module
from chatfleet.engines.transformers.kernels import ALL_KEYS, Kernels, compiler, load_kernels
from engines.transformers_models import Driver, random_prompt, save_model

PAGE_TOKENS = 8


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    if compiler() is None:
        pytest.skip("there is no C++ compiler")
    loaded = load_kernels()
    assert loaded is not None
    return loaded


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    dtype: torch.dtype = request.param
    return dtype


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """`expected` is float32, from the same inputs: what is allowed is one rounding."""
    allowed = 1e-5 if got.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got.float(), expected, rtol=allowed, atol=allowed / 4)


def normed(rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = rows.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight


@pytest.mark.parametrize(("count", "size"), [(1, 16), (3, 896), (70, 4096)])
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, count: int, size: int) -> None:
    rows, weight = torch.randn(count, size).to(dtype), torch.randn(size)
    assert_same(kernels.rms_norm(rows, weight, 1e-6), normed(rows, weight, 1e-6))


@pytest.mark.parametrize(("count", "size"), [(1, 32), (5, 4864), (64, 96)])
def test_silu_mul(kernels: Kernels, dtype: torch.dtype, count: int, size: int) -> None:
    gate_up = (20 * torch.randn(count, 2 * size)).to(dtype)
    gate, up = gate_up.float().split(size, dim=-1)
    assert_same(kernels.silu_mul(gate_up), silu(gate) * up)


def test_silu_mul_of_what_has_no_exponential(kernels: Kernels, dtype: torch.dtype) -> None:
    gate = torch.tensor([-3e38, -100.0, -88.5, -0.0, 88.5, 100.0, 1e30, torch.nan]).repeat(4).to(dtype)
    got = kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)))[None])
    torch.testing.assert_close(got[0].float(), silu(gate.float()), rtol=1e-2, atol=1e-35, equal_nan=True)


@pytest.mark.parametrize("with_norms", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize(("query_heads", "heads", "size"), [(14, 2, 64), (4, 4, 32), (6, 1, 96), (8, 2, 128)])
def test_rotary_and_store(
    kernels: Kernels, dtype: torch.dtype, query_heads: int, heads: int, size: int, with_norms: bool
) -> None:
    rows = 9
    projected = torch.randn(rows, (query_heads + 2 * heads) * size).to(dtype)
    cos, sin = (torch.randn(rows, size).to(dtype) for _ in range(2))
    store = torch.zeros(4, PAGE_TOKENS, heads, 2 * size, dtype=dtype)
    slots = torch.randperm(4 * PAGE_TOKENS)[:rows]
    norms = (torch.randn(size), torch.randn(size)) if with_norms else (None, None)

    got = kernels.rotary_and_store(projected, cos, sin, slots, store, *norms, 1e-6)

    parts = projected.float().view(rows, -1, size).split((query_heads, heads, heads), dim=1)
    rotated = []
    for part, weight in zip(parts[:2], norms, strict=True):
        scaled = part if weight is None else normed(part, weight, 1e-6)
        turned = torch.cat((-scaled[..., size // 2 :], scaled[..., : size // 2]), dim=-1)
        rotated.append(scaled * cos.float()[:, None] + turned * sin.float()[:, None])
    assert_same(got, rotated[0])
    flat = store.view(-1, heads, 2 * size)
    assert_same(flat[slots], torch.cat((rotated[1], parts[2]), dim=-1))
    untouched = torch.ones(len(flat), dtype=torch.bool).index_fill_(0, slots, False)
    assert not flat[untouched].any()


@pytest.mark.parametrize("window", [ALL_KEYS, 1, 7, 300], ids=["all", "1", "7", "300"])
@pytest.mark.parametrize(("query_heads", "heads", "size"), [(14, 2, 64), (4, 4, 32), (6, 1, 96), (8, 2, 128)])
def test_attend(kernels: Kernels, dtype: torch.dtype, query_heads: int, heads: int, size: int, window: int) -> None:
    ends = [1, 2, 15, 16, 17, 33, 255, 256, 257, 600]
    pages = 80
    store = torch.randn(pages, PAGE_TOKENS, heads, 2 * size).to(dtype)
    queries = (2 * torch.randn(len(ends), query_heads, size)).to(dtype)
    tables = torch.stack([torch.randperm(pages) for _ in ends])[:, : 600 // PAGE_TOKENS].contiguous()
    out = torch.full_like(queries, torch.nan)

    kernels.attend(queries, store, tables, torch.tensor(ends) - 1, size**-0.5, window, out)

    for row, end in enumerate(ends):
        stored = store[tables[row]].flatten(0, 1)[max(0, end - window) : end].float()
        keys, values = stored.repeat_interleave(query_heads // heads, dim=1).split(size, dim=-1)
        scores = torch.einsum("hd,khd->hk", queries[row].float(), keys) * size**-0.5
        assert_same(out[row], torch.einsum("hk,khd->hd", scores.softmax(-1), values))


def test_a_row_does_not_depend_on_the_others(kernels: Kernels, dtype: torch.dtype) -> None:
    store = torch.randn(20, PAGE_TOKENS, 2, 128).to(dtype)
    queries = torch.randn(6, 14, 64).to(dtype)
    tables, positions = torch.randint(0, 20, (6, 10)), torch.randint(0, 80, (6,))
    together, alone = torch.empty_like(queries), torch.empty_like(queries)
    kernels.attend(queries, store, tables, positions, 0.125, ALL_KEYS, together)
    for row in range(6):
        one = slice(row, row + 1)
        kernels.attend(queries[one], store, tables[one], positions[one], 0.125, ALL_KEYS, alone[one])
    assert torch.equal(together, alone)


def test_numbers_that_are_not_finite_are_seen(kernels: Kernels, dtype: torch.dtype) -> None:
    store, queries = torch.randn(4, PAGE_TOKENS, 2, 128).to(dtype), torch.randn(3, 4, 64).to(dtype)
    queries[1, 0, 3] = 1.0
    queries[0, 0, 5], store[1, 0, 0, 3], store[2, 0, 0, 64] = torch.nan, torch.inf, torch.nan
    out = torch.empty_like(queries)
    kernels.attend(queries, store, torch.tensor([[3], [1], [2]]), torch.tensor([4, 4, 4]), 0.125, ALL_KEYS, out)
    assert not out[0, 0].isfinite().any()
    assert not out[1, 0].isfinite().any()
    assert not out[2, 0].isfinite().all()
    assert out[:, 2:].isfinite().all()


def test_what_does_not_fit_is_refused(kernels: Kernels) -> None:
    rows = torch.randn(4, 64)
    with pytest.raises(RuntimeError, match="rows must be a contiguous CPU tensor"):
        kernels.rms_norm(rows[:, ::2], torch.ones(32), 1e-6)
    with pytest.raises(RuntimeError, match="weight must be"):
        kernels.rms_norm(rows, torch.ones(64, dtype=torch.bfloat16), 1e-6)
    with pytest.raises(RuntimeError, match="is not served"):
        kernels.silu_mul(rows.to(torch.float16))
    store, queries = torch.zeros(2, PAGE_TOKENS, 1, 128), torch.zeros(1, 1, 64)
    for page, position, reason in ((2, 0, "page 2"), (-1, 0, "page -1"), (1, PAGE_TOKENS, "position 8")):
        with pytest.raises(RuntimeError, match=reason):
            tables, positions = torch.tensor([[page]]), torch.tensor([position])
            kernels.attend(queries, store, tables, positions, 1.0, ALL_KEYS, queries)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
@pytest.mark.long
def test_a_model_writes_what_it_writes_without(
    kernels: Kernels, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name == "attend":
                attended.append(1)
            return getattr(kernels, name)

    settings = {"sliding_window": 7} if model_type == "mistral" else {}
    model = save_model(tmp_path / model_type, model_type, head_dim=32, **settings)
    prompts = [random_prompt(length) for length in (3, 17, 40)]
    expected = [Driver(model).answer(prompt) for prompt in prompts]
    monkeypatch.setattr(fused, "KERNELS_FROM_WEIGHTS", 0)
    monkeypatch.setattr(fused, "load_kernels", Counting)
    assert [Driver(model).answer(prompt) for prompt in prompts] == expected
    assert attended


def test_without_a_compiler_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    caplog.set_level("INFO", kernels_module.__name__)
    assert load_kernels.__wrapped__() is None
    assert "install g++" in caplog.text


def test_a_compiler_that_fails_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho note >&2\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    caplog.set_level("INFO", kernels_module.__name__)
    assert load_kernels.__wrapped__() is None
    assert "stay in use: fatal error: Python.h" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
