"""Architectures with sliding-window layers."""

from __future__ import annotations

from .architecture import Architecture, Value
from .blocks import (
    EXPERTS,
    N_EXPERTS,
    Tensors,
    attention,
    attention_biases,
    biases,
    experts,
    feed_forward,
    normed_attention,
    norms,
)
from .dense import DENSE
from .spec import QK, Tensor, TinySpec


def _every_second(s: TinySpec) -> dict[str, Value]:
    """Layer 0 slides, layer 1 does not, and so on."""
    return {"attention.sliding_window": s.n_swa, "attention.sliding_window_pattern": 2}


def _gemma2(s: TinySpec, layer: int) -> Tensors:
    names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    return norms(s.d, *names) | attention(s) | feed_forward(s)


def _gemma3(s: TinySpec, layer: int) -> Tensors:
    return _gemma2(s, layer) | normed_attention(s)


def _slides(layer: int) -> bool:
    return layer % 2 == 0


def _gemma4(s: TinySpec, layer: int) -> Tensors:
    """Full-attention layers have wider heads than the others."""
    head_dim = s.head_dim if _slides(layer) else 2 * s.head_dim
    q, kv = s.n_heads * head_dim, s.n_kv_heads * head_dim
    return _gemma2(s, layer) | {
        "attn_q.weight": Tensor((q, s.d)),
        "attn_k.weight": Tensor((kv, s.d)),
        "attn_v.weight": Tensor((kv, s.d)),
        "attn_output.weight": Tensor((s.d, q)),
        # Gemma 4 does not divide scores by the root of the head dim.
        "attn_q_norm.weight": Tensor((head_dim,), "norm", QK * head_dim**-0.25),
        "attn_k_norm.weight": Tensor((head_dim,), "norm", QK * head_dim**-0.25),
    }


def _gemma4_keys(s: TinySpec) -> dict[str, Value]:
    return {
        "attention.sliding_window": s.n_swa,
        "attention.sliding_window_pattern": [_slides(i) for i in range(s.n_layers)],
        "attention.key_length": 2 * s.head_dim,
        "attention.value_length": 2 * s.head_dim,
        "attention.key_length_swa": s.head_dim,
        "attention.value_length_swa": s.head_dim,
        "rope.dimension_count": 2 * s.head_dim,
        "rope.dimension_count_swa": s.head_dim,
        "rope.freq_base_swa": 1e4,
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
    }


def _gpt_oss(s: TinySpec, layer: int) -> Tensors:
    return (
        norms(s.d, "attn_norm", "post_attention_norm")
        | attention(s)
        | attention_biases(s)
        | biases(attn_output=s.d, ffn_gate_inp=N_EXPERTS)
        | {"attn_sinks.weight": Tensor((s.n_heads,), "bias", 3.0)}
        | experts(s)
        | {
            "ffn_gate_exps.bias": Tensor((N_EXPERTS, s.d_ff), gain=1.0),
            "ffn_up_exps.bias": Tensor((N_EXPERTS, s.d_ff), gain=1.0),
            "ffn_down_exps.bias": Tensor((N_EXPERTS, s.d), gain=1.0),
        }
    )


SLIDING = {
    "gemma2": Architecture(
        "gemma2",
        _gemma2,
        keys=lambda s: _every_second(s)
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
        tied=True,
    ),
    "gemma3": Architecture("gemma3", _gemma3, keys=_every_second, tied=True),
    "gemma4": Architecture(
        "gemma4",
        _gemma4,
        keys=_gemma4_keys,
        outer=lambda s: {"rope_freqs.weight": Tensor((s.head_dim,), "norm")},
        tied=True,
    ),
    "gemma4-shared": Architecture(
        "gemma4",
        _gemma4,
        keys=lambda s: _gemma4_keys(s) | {"attention.shared_kv_layers": 2},
        outer=lambda s: {"rope_freqs.weight": Tensor((s.head_dim,), "norm")},
        tied=True,
        shape={"n_layers": 4},
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        _gpt_oss,
        keys=lambda s: _every_second(s)
        | EXPERTS
        | {
            "expert_feed_forward_length": s.d_ff,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 256,
        },
    ),
    "cohere2": Architecture(
        "cohere2",
        DENSE["command-r"].block,
        keys=lambda s: _every_second(s) | DENSE["command-r"].keys(s),
        tied=True,
    ),
    "olmo3": Architecture("olmo2", DENSE["olmo2"].block, keys=_every_second),
}
