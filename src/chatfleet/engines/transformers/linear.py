"""Linear layers on CPUs: weights packed once into the layout that oneDNN's products read.

`torch.nn.functional.linear` reads plain weights at 28 GB/s in bf16 on 2 cores with AVX-512, packed ones at 42, with
the same bits as result. The operators are private to torch, so they are tried first, and layers stay as they are where
that fails.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

_SAME_INPUT: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that transformers' models feed with the same rows: one product of more weights is faster than several."""


class PackedLinear(nn.Module):
    """The product of an `nn.Linear` (or GPT-2's transposed one) with packed weights [out_features, in_features]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weights, made anew: some models look at them beside using the layer."""
        plain: torch.Tensor = self._packed.to_dense()
        return plain

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.numel() == 0:  # an expert that no token has chosen
            return rows.new_zeros((*rows.shape[:-1], self.out_features))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product and `other`, which has its shape, added up."""
        binary = torch.ops.mkldnn._linear_pointwise.binary
        total: torch.Tensor = binary(rows, other, self._packed, self.bias, "add")
        return total


class _Joint:
    """Layers whose input is the same, as one product. The first one that is asked computes it for all."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        biases = [layer.bias for layer in layers]
        bias = None if None in biases else torch.cat([bias.detach() for bias in biases])
        self.product = PackedLinear(torch.cat([layer.weight.detach() for layer in layers]), bias)
        self.sizes = [layer.out_features for layer in layers]
        self._rows: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def part(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        if rows is not self._rows or index not in self._parts:
            self._rows, self._parts = rows, dict(enumerate(torch.split(self.product(rows), self.sizes, dim=-1)))
        part = self._parts.pop(index)
        if not self._parts:
            self._rows = None
        return part


class JointLinear(nn.Module):
    """One of the layers of a joint product."""

    def __init__(self, joint: _Joint, index: int) -> None:
        super().__init__()
        self.joint = joint
        self._index = index
        self.in_features, self.out_features = joint.product.in_features, joint.sizes[index]

    @property
    def weight(self) -> torch.Tensor:
        return torch.split(self.joint.product.weight, self.joint.sizes)[self._index]

    @property
    def bias(self) -> torch.Tensor | None:
        bias = self.joint.product.bias
        return None if bias is None else torch.split(bias, self.joint.sizes)[self._index]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.joint.part(rows, self._index)


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of a model on the CPU, in place. Returns how many; 0 where torch cannot.

    The plain weights are freed as it goes, but for those that an embedding shares.
    """
    parents = [(parent, _packable(parent)) for parent in model.modules()]
    found = [layer for _, layers in parents for layer in layers.values()]
    if not found or not _can_pack(found[0].weight):
        return 0
    for parent, layers in parents:
        for names in _SAME_INPUT:
            if all(type(layers.get(name)) is nn.Linear for name in names) and _alike([layers[name] for name in names]):
                joint = _Joint([layers.pop(name) for name in names])
                for index, name in enumerate(names):
                    setattr(parent, name, JointLinear(joint, index))
        for name, layer in layers.items():
            weight = layer.weight.detach()
            bias = None if layer.bias is None else layer.bias.detach()
            setattr(parent, name, PackedLinear(weight.T if isinstance(layer, Conv1D) else weight, bias))
    return len(found)


def _packable(parent: nn.Module) -> dict[str, Any]:
    return {
        name: child
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D)
        and child.weight.device.type == "cpu"
        and child.weight.dtype in (torch.bfloat16, torch.float32)
    }


def _alike(layers: Sequence[Any]) -> bool:
    first = layers[0]
    return all(
        layer.in_features == first.in_features
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


def _can_pack(like: Any) -> bool:
    """Whether the operators are there and give what the plain product gives."""
    weight, rows = torch.randn(48, 32).to(like.dtype), torch.randn(1, 5, 32).to(like.dtype)
    try:
        packed = PackedLinear(weight, None)(rows)
    except (AttributeError, RuntimeError) as exc:
        logger.info("linear layers stay as they are: this torch cannot pack them (%s)", str(exc).partition("\n")[0])
        return False
    return bool(torch.allclose(packed, nn.functional.linear(rows, weight), rtol=1e-2, atol=1e-2))
