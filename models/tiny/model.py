"""The network: Qwen2-shaped (RMSNorm, rotary positions, biases on queries, keys and values, SwiGLU, tied embeddings).

Not Qwen3-shaped: transformers 5.23 does not read its head size from a GGUF and takes it for 128.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocab_size: int
    width: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 768
    context_length: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class Norm(nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (length, head_dim / 2)."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-steps)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of the last dimension of x (batch, heads, length, head_dim)."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over (batch, heads, length, head_dim)."""
    length = q.shape[2]
    # Written out, because the CPU backward of scaled_dot_product_attention took 40% of a training step in bf16.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=True)
        self.k = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=True)
        self.v = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=True)
        self.o = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        head_dim, repeats = self.shape.head_dim, self.shape.heads // self.shape.kv_heads
        q = self.q(x).view(batch, length, -1, head_dim).transpose(1, 2)
        k = self.k(x).view(batch, length, -1, head_dim).transpose(1, 2)
        v = self.v(x).view(batch, length, -1, head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        # Rows are padded on the right only, so causality alone keeps padding out of sight.
        y = attend(q, k, v)
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.width, shape.norm_eps)
        self.attention = Attention(shape)
        self.mlp_norm = Norm(shape.width, shape.norm_eps)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.mlp_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class TinyModel(nn.Module):
    """A decoder whose token vector is (its case group) + (its case) + (its own), summed once on export.

    `hello`, `Hello` and `HELLO` share the first part, so what is learnt of one is known of all.
    """

    group_ids: Tensor
    case_ids: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, group_ids: list[int], case_ids: list[int]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("group_ids", torch.tensor(group_ids))
        self.register_buffer("case_ids", torch.tensor(case_ids))
        cos, sin = rotary(shape, shape.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.group_embedding = nn.Parameter(torch.randn(max(group_ids) + 1, shape.width) * 0.04)
        self.case_embedding = nn.Parameter(torch.randn(3, shape.width) * 0.04)
        self.own_embedding = nn.Parameter(torch.zeros(shape.vocab_size, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.attention.o.weight)
            nn.init.zeros_(block.down.weight)

    def embedding(self) -> Tensor:
        """The token vectors (vocab_size, width), also the output layer's weight."""
        return self.group_embedding[self.group_ids] + self.case_embedding[self.case_ids] + self.own_embedding

    def hidden(self, token_ids: Tensor, embedding: Tensor) -> Tensor:
        """Final hidden states (batch, length, width) of token_ids (batch, length)."""
        length = token_ids.shape[1]
        x = F.embedding(token_ids, embedding)
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits (batch, length, vocab_size) of token_ids (batch, length)."""
        embedding = self.embedding()
        return F.linear(self.hidden(token_ids, embedding), embedding)
