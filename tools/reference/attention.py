"""Causal attention in chunks of queries: several times faster on a CPU than PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 128


class ChunkedAttention(torch.autograd.Function):
    """Softmax attention that keeps the weights for the way back.

    Each chunk of queries sees the keys up to its end, so that nearly half of the work falls away;
    query heads that share a KV head are one matrix.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """(B, H, T, D) queries, (B, G, T, D) keys and values, (B, T) bias to (B, H, T, D)."""
        n, h, t, d = q.shape
        g = k.shape[1]
        if bias is not None:
            bias = bias.to(q.dtype).repeat_interleave(g, 0)[:, None]
        k, v = k.reshape(n * g, t, d), v.reshape(n * g, t, d)
        q = (q * d**-0.5).reshape(n * g, h // g, t, d)
        mask = q.new_full((CHUNK, CHUNK), float("-inf")).triu(1)
        out = torch.empty_like(q)
        weights = []
        for a in range(0, t, CHUNK):
            e = min(t, a + CHUNK)
            scores = torch.bmm(q[:, :, a:e].reshape(n * g, -1, d), k[:, :e].mT)
            scores.view(n * g, h // g, e - a, e)[..., a:].add_(mask[: e - a, : e - a])
            if bias is not None:
                scores += bias[..., :e]
            weights.append(scores.softmax(-1))
            out[:, :, a:e] = torch.bmm(weights[-1], v[:, :e]).view(n * g, h // g, e - a, d)
        ctx.save_for_backward(q, k, v, *weights)
        return out.view(n, h, t, d)

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v; sums over chunks are float32."""
        q, k, v, *weights = ctx.saved_tensors
        n, h, t, d = d_out.shape
        m, r = q.shape[:2]
        d_out = d_out.reshape(m, r, t, d)
        d_q = torch.empty_like(q)
        d_k, d_v = q.new_zeros(2, m, t, d, dtype=torch.float32)
        for p, a in zip(weights, range(0, t, CHUNK), strict=True):
            e = min(t, a + CHUNK)
            part = d_out[:, :, a:e].reshape(m, -1, d)
            d_v[:, :e] += torch.bmm(p.mT, part)
            d_p = torch.bmm(part, v[:, :e].mT)
            d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_q[:, :, a:e] = torch.bmm(d_s, k[:, :e]).view(m, r, e - a, d)
            d_k[:, :e] += torch.bmm(d_s.mT, q[:, :, a:e].reshape(m, -1, d))
        d_k, d_v = (x.to(k.dtype).view(n, m // n, t, d) for x in (d_k, d_v))
        return (d_q * d**-0.5).view(n, h, t, d), d_k, d_v, None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal attention of (B, H, T, D) queries to (B, G, T, D) keys and values.

    `bias` (B, T) is added to the logits of each key; it has no gradient.
    """
    if q.device.type == "cpu":
        return ChunkedAttention.apply(q, k, v, bias)
    mask = None
    if bias is not None:
        t = q.shape[2]
        mask = bias.to(q.dtype)[:, None, None] + q.new_full((t, t), float("-inf")).triu(1)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
