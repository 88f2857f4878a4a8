"""Decoder layers of Llama's shape on CPUs, with fewer and larger operations.

A step of one row a sequence is so short on a CPU that the many small operations of transformers' layers take a third
of it: 20 of 56 ms with 16 rows of a 0.39B model, beside 36 in products that are bound by memory. A layer that consists
of what Llama's consists of is replaced, if on random rows the replacement gives what the layer gives.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.nn.functional import silu

from chatfleet.engines.transformers.attention import AttentionWants, Group, PagedCache, Step
from chatfleet.engines.transformers.kernels import ALL_KEYS, Kernels, load_kernels
from chatfleet.engines.transformers.linear import JointLinear, PackedLinear

logger = logging.getLogger(__name__)

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
TRIAL_ROWS = 5
KERNELS_FROM_WEIGHTS = 50_000_000
"""Models with fewer weights in their products are not worth compiling for."""


class RotaryTable:
    """The rotary factors of a step, made once for all layers: cosines, and sines with the sign of their half."""

    def __init__(self) -> None:
        self._of: torch.Tensor | None = None
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def factors(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From [1, rows, size] each to [rows, 1, size]."""
        if cos is not self._of or self._factors is None:
            half = sin.shape[-1] // 2
            signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
            self._of, self._factors = cos, (cos[0][:, None], signed[:, None])
        return self._factors


class _Native:
    """The kernels, and what they take of a step, made once for all layers."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._cos: torch.Tensor | None = None
        self._factors: list[torch.Tensor] = []
        self._step: Step | None = None
        self._groups: list[tuple[slice, torch.Tensor, torch.Tensor]] = []

    def factors(self, cos: torch.Tensor, sin: torch.Tensor) -> list[torch.Tensor]:
        """From [1, rows, size] each to [rows, size]."""
        if cos is not self._cos:
            self._cos, self._factors = cos, [cos[0].contiguous(), sin[0].contiguous()]
        return self._factors

    def groups(self, step: Step) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """The rows, tables and positions of each group of a step, if each row is a sequence's only one. Empty for other
        steps, and for exact ones."""
        if step is not self._step:
            single = not step.exact and all(group.queries == 1 for group in step.groups)
            of_all = [(slice(group.start, group.end), group.tables, group.positions.view(-1)) for group in step.groups]
            self._step, self._groups = step, of_all if single else []
        return self._groups


class _Norm(NamedTuple):
    """Of rows' last dimension, by torch's operations and what a kernel needs for the same."""

    by_torch: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    epsilon: float


class FusedLayer(nn.Module):
    """The same as a layer of Llama's shape: attention with rotary embeddings (and norms of queries and keys, where it
    has them) and a gated MLP, each behind an RMS norm and added to its input."""

    def __init__(self, layer: Any, rotary: RotaryTable, native: _Native | None = None) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._index: int = attention.layer_idx
        self.wants = AttentionWants()
        self._head_size: int = attention.head_dim
        self._rotary = rotary
        self._native = native
        self._projection: PackedLinear = attention.q_proj.joint.product
        query_size, key_size, _ = attention.q_proj.joint.sizes
        self._query_heads, self._key_heads = query_size // self._head_size, key_size // self._head_size
        self._output: PackedLinear = attention.o_proj
        self._gate_up: PackedLinear = mlp.gate_proj.joint.product
        self._inner_size: int = mlp.gate_proj.out_features
        self._down: PackedLinear = mlp.down_proj
        self._before_attention = _norm(layer.input_layernorm)
        self._before_mlp = _norm(layer.post_attention_layernorm)
        self._query_key_norms: tuple[_Norm, _Norm] | None = None
        self._norms_of_heads: tuple[torch.Tensor | None, torch.Tensor | None, float] = (None, None, 0.0)
        if hasattr(attention, "q_norm"):
            query_norm, key_norm = _norm(attention.q_norm), _norm(attention.k_norm)
            self._query_key_norms = query_norm, key_norm
            self._norms_of_heads = query_norm.weight, key_norm.weight, query_norm.epsilon
        for name in ("attention_type", "layer_type"):  # what models ask a layer for
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: PagedCache,
        **kwargs: Any,
    ) -> torch.Tensor:
        """From [1, rows, hidden_size] to the same. Masks are of no use here: the cache knows the step."""
        if self._native is not None:
            return self._forward_natively(self._native, hidden_states[0], position_embeddings, past_key_values)
        rows = hidden_states[0]
        projected = self._projection(self._before_attention.by_torch(rows))
        attended = self._attend(projected, position_embeddings, past_key_values)
        rows = self._output.plus(attended, rows)
        gate, up = self._gate_up(self._before_mlp.by_torch(rows)).split(self._inner_size, dim=-1)
        return self._down.plus(silu(gate).mul_(up), rows)[None]

    def _forward_natively(
        self,
        native: _Native,
        rows: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cache: PagedCache,
    ) -> torch.Tensor:
        kernels, (_, weight, epsilon) = native.kernels, self._before_attention
        projected = self._projection(kernels.rms_norm(rows.contiguous(), weight, epsilon))
        attended = self._attend_natively(native, projected, position_embeddings, cache)
        rows = self._output.plus(attended, rows)
        _, weight, epsilon = self._before_mlp
        gate_up = self._gate_up(kernels.rms_norm(rows, weight, epsilon))
        return self._down.plus(kernels.silu_mul(gate_up), rows)[None]

    def _attend(
        self, projected: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], cache: PagedCache
    ) -> torch.Tensor:
        heads = projected.view(len(projected), -1, self._head_size)
        both = self._query_heads + self._key_heads
        queries_keys = heads[:, :both]
        if self._query_key_norms is not None:
            query_norm, key_norm = self._query_key_norms
            queries, keys = torch.split(queries_keys, [self._query_heads, self._key_heads], dim=1)
            queries_keys = torch.cat((query_norm.by_torch(queries), key_norm.by_torch(keys)), dim=1)
        cos, sin = self._rotary.factors(*position_embeddings)
        turned = torch.roll(queries_keys, self._head_size // 2, -1)
        rotated = torch.addcmul(queries_keys * cos, turned, sin)
        cache.store(self._index, torch.cat((rotated[:, self._query_heads :], heads[:, both:]), dim=-1))
        return cache.attend(rotated[:, : self._query_heads], self.wants).reshape(len(projected), -1)

    def _attend_natively(
        self,
        native: _Native,
        projected: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cache: PagedCache,
    ) -> torch.Tensor:
        step, store = cache.step, cache.enter(self._index)
        cos, sin = native.factors(*position_embeddings)
        norms = self._norms_of_heads
        queries = native.kernels.rotary_and_store(projected, cos, sin, step.slots, store, *norms)
        groups = native.groups(step)
        wants = self.wants
        if not groups or wants.cap is not None or wants.sinks is not None:
            return cache.attend(queries, wants).reshape(len(queries), -1)
        attended = torch.empty_like(queries)
        scale, window = wants.scaling or self._head_size**-0.5, wants.window or ALL_KEYS
        for rows, tables, positions in groups:
            native.kernels.attend(queries[rows], store, tables, positions, scale, window, attended[rows])
        return attended.view(len(queries), -1)


def _norm(module: Any) -> _Norm:
    """RMS norm in five operations: torch's own takes it apart into nine on a CPU."""
    weight = module.weight.float()
    epsilon, part = torch.tensor(module.variance_epsilon), 1 / len(weight)

    def norm(rows: torch.Tensor) -> torch.Tensor:
        length = vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        scaled = rows * torch.addcmul(epsilon, length, length, value=part).rsqrt_()
        return torch.mul(scaled, weight, out=torch.empty_like(rows))

    return _Norm(norm, weight, module.variance_epsilon)


def fuse_layers(model: nn.Module, cache: PagedCache) -> int:
    """Replace the layers that can be, in place. Returns how many. `cache` is in the middle of a step of TRIAL_ROWS
    rows, whose keys and values are overwritten."""
    layers = getattr(model, "layers", None)
    rotary_embedding = getattr(model, "rotary_emb", None)
    if not isinstance(layers, nn.ModuleList) or rotary_embedding is None:
        return 0
    kernels = load_kernels() if _is_worth_kernels(model) else None
    ways = [None] if kernels is None else [_Native(kernels), None]
    fused, rotary = 0, RotaryTable()
    for index, layer in enumerate(layers):
        if not _has_the_shape(layer):
            continue
        for native in ways:
            candidate = _fused(layer, rotary, native, rotary_embedding, cache)
            if candidate is not None:
                layers[index] = candidate
                fused += 1
                break
    return fused


def _fused(
    layer: Any, rotary: RotaryTable, native: _Native | None, rotary_embedding: nn.Module, cache: PagedCache
) -> FusedLayer | None:
    try:
        candidate = FusedLayer(layer, rotary, native)
        return candidate if _gives_the_same(candidate, layer, rotary_embedding, cache) else None
    except (AttributeError, RuntimeError, TypeError, ValueError) as exc:
        logger.debug("a layer stays as it is", exc_info=exc)
        return None


def _is_worth_kernels(model: nn.Module) -> bool:
    packed = (part for part in model.modules() if isinstance(part, PackedLinear))
    return sum(part.out_features * part.in_features for part in packed) >= KERNELS_FROM_WEIGHTS


def _has_the_shape(layer: Any) -> bool:
    if dict(layer.named_children()).keys() != _LAYER:
        return False
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())
    if attention.keys() - {"q_norm", "k_norm"} != _ATTENTION or mlp.keys() != _MLP:
        return False
    joint, packed = (attention["q_proj"], mlp["gate_proj"]), (attention["o_proj"], mlp["down_proj"])
    return all(isinstance(part, JointLinear) for part in joint) and all(isinstance(p, PackedLinear) for p in packed)


def _gives_the_same(candidate: FusedLayer, layer: Any, rotary_embedding: nn.Module, cache: PagedCache) -> bool:
    size, dtype = candidate._output.out_features, layer.input_layernorm.weight.dtype
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((1, TRIAL_ROWS, size), generator=generator).to(dtype)
    positions = torch.arange(TRIAL_ROWS)[None]
    arguments = {
        "position_embeddings": rotary_embedding(rows, positions),
        "position_ids": positions,
        "past_key_values": cache,
        "attention_mask": None,
        "use_cache": True,
    }
    expected = layer(rows, **arguments)
    candidate.wants = cache.wanted  # the window, for one, which is not always the layer's to know
    got = candidate(rows, **arguments)
    if not isinstance(expected, torch.Tensor) or expected.shape != got.shape:
        return False
    last = _decoded(candidate, rows, arguments, cache)
    error = torch.cat(((got - expected)[0], (last - expected[:, -1:])[0])).float().abs().max()
    return bool(error <= (1e-4 if dtype == torch.float32 else 0.03) * expected.float().abs().max())


def _decoded(candidate: FusedLayer, rows: torch.Tensor, arguments: dict[str, Any], cache: PagedCache) -> torch.Tensor:
    """The last row once more, in a step of its own after that of all rows: the way of single rows is another one."""
    step = cache.step
    group, last = step.groups[0], slice(-1, None)
    alone = Group(0, 1, 1, group.tables, group.positions.view(-1, 1)[last], group.page_tokens)
    cache.begin(Step([alone], step.slots[last], step.positions[last]))
    try:
        cos, sin = arguments["position_embeddings"]
        positions = {"position_embeddings": (cos[:, last], sin[:, last]), "position_ids": step.positions[None, last]}
        decoded: torch.Tensor = candidate(rows[:, last], **{**arguments, **positions})
        return decoded
    finally:
        cache.begin(step)
