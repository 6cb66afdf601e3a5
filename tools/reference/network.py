"""The reference model in PyTorch: the `qwen3` architecture as llama.cpp computes it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend

EPS = 1e-6
EMBEDDING_STD = 0.06


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; H query heads and G KV heads of D dims."""

    n_vocab: int = 4096
    n_layers: int = 6
    d: int = 256
    d_ff: int = 512
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    rope_base: float = 1e7
    n_ctx_train: int = 65_536


def rotary(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of (B, T) positions; each (B, 1, T, head_dim / 2) float32."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions[:, None, :, None].double() * base ** (-exponents / head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, heads, T, D): dim i with dim i + D / 2 (RoFormer, arXiv 2104.09864)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Attention with normalised queries and keys, and a gated feed-forward."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.attn_norm = nn.RMSNorm(s.d, EPS)
        self.attn_q = nn.Linear(s.d, s.n_heads * s.head_dim, bias=False)
        self.attn_k = nn.Linear(s.d, s.n_kv_heads * s.head_dim, bias=False)
        self.attn_v = nn.Linear(s.d, s.n_kv_heads * s.head_dim, bias=False)
        self.attn_output = nn.Linear(s.n_heads * s.head_dim, s.d, bias=False)
        self.attn_q_norm = nn.RMSNorm(s.head_dim, EPS)
        self.attn_k_norm = nn.RMSNorm(s.head_dim, EPS)
        self.ffn_norm = nn.RMSNorm(s.d, EPS)
        self.ffn_gate = nn.Linear(s.d, s.d_ff, bias=False)
        self.ffn_up = nn.Linear(s.d, s.d_ff, bias=False)
        self.ffn_down = nn.Linear(s.d_ff, s.d, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Map (B, T, d) to (B, T, d); `scale` (B, 1, 1, 1) and `bias` are of attention logits."""
        s, (n, t, _) = self.s, x.shape
        h = self.attn_norm(x)
        q = self.attn_q_norm(self.attn_q(h).view(n, t, s.n_heads, s.head_dim)).transpose(1, 2)
        k = self.attn_k_norm(self.attn_k(h).view(n, t, s.n_kv_heads, s.head_dim)).transpose(1, 2)
        v = self.attn_v(h).view(n, t, s.n_kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin) * scale, rotate(k, cos, sin)
        q, k = q.to(v.dtype), k.to(v.dtype)
        y = attend(q, k, v, bias)
        x = x + self.attn_output(y.transpose(1, 2).reshape(n, t, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Network(nn.Module):
    """Token ids to hidden states; the embedding is the output matrix too.

    Parameters
    ----------
    shape : Shape
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.d)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.output_norm = nn.RMSNorm(shape.d, EPS)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.token_embd.weight, std=EMBEDDING_STD)
        for block in self.blk:
            # Queries begin near the keys: equal tokens attend to each other from the start.
            k = block.attn_k.weight.view(self.shape.n_kv_heads, self.shape.head_dim, -1)
            group = self.shape.n_heads // self.shape.n_kv_heads
            like_k = k.repeat_interleave(group, 0).reshape_as(block.attn_q.weight)
            with torch.no_grad():
                block.attn_q.weight.mul_(0.5).add_(like_k, alpha=0.5)
                block.attn_output.weight.zero_()
                block.ffn_down.weight.zero_()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the last norm, (B, T, d).

        Parameters
        ----------
        tokens, positions : Tensor
            (B, T) int64.
        scale : Tensor, optional
            (B,) factors of the attention logits.
        bias : Tensor, optional
            (B, T) what is added to the logits of each key.
        """
        cos, sin = rotary(positions, self.shape.head_dim, self.shape.rope_base)
        scale = tokens.new_ones(len(tokens), dtype=torch.float32) if scale is None else scale
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin, scale.view(-1, 1, 1, 1), bias)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (..., d) to (..., n_vocab)."""
        return F.linear(hidden, self.token_embd.weight)

    def weights(self) -> dict[str, np.ndarray]:
        """Weights by their names in GGUF, float32."""
        return {name: x.detach().float().cpu().numpy() for name, x in self.state_dict().items()}

    @classmethod
    def of_weights(cls, shape: Shape, weights: dict[str, np.ndarray]) -> Network:
        """Make a network from what `weights` returned."""
        network = cls(shape)
        network.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in weights.items()})
        return network


def deepen(network: Network, behind: list[int]) -> Network:
    """Insert copies of layers that add nothing yet: what the network computes stays the same.

    Parameters
    ----------
    network : Network
    behind : list of int
        Layers behind which a copy is inserted.

    Returns
    -------
    Network
    """
    blocks = []
    for i, block in enumerate(network.blk):
        blocks.append(block)
        for _ in range(behind.count(i)):
            new = copy.deepcopy(block)
            nn.init.zeros_(new.attn_output.weight)
            nn.init.zeros_(new.ffn_down.weight)
            blocks.append(new)
    shape = Shape(**{**vars(network.shape), "n_layers": len(blocks)})
    deeper = Network(shape)
    deeper.blk = nn.ModuleList(blocks)
    deeper.token_embd, deeper.output_norm = network.token_embd, network.output_norm
    for block in deeper.blk:
        block.s = shape
    return deeper
