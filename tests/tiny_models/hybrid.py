"""Architectures with recurrent layers."""

from __future__ import annotations

from .architecture import Architecture, Value
from .blocks import (
    EXPERTS,
    Tensors,
    attention,
    experts,
    feed_forward,
    normed_attention,
    norms,
    shared_expert,
)
from .spec import Tensor, TinySpec

CONV, STATE, GROUPS = 4, 32, 2  # convolution width, state size, groups of heads


def _kv_heads(s: TinySpec) -> list[int]:
    """Layer 0 is recurrent, the others attend."""
    return [0] + [s.n_kv_heads] * (s.n_layers - 1)


def _lfm2(s: TinySpec, layer: int) -> Tensors:
    conv = {
        "shortconv.conv.weight": Tensor((s.d, 3)),
        "shortconv.in_proj.weight": Tensor((3 * s.d, s.d)),
        "shortconv.out_proj.weight": Tensor((s.d, s.d)),
    }
    mixer = normed_attention(s) if layer else conv
    return norms(s.d, "attn_norm", "ffn_norm") | mixer | feed_forward(s)


def _mamba2(s: TinySpec) -> Tensors:
    inner = 2 * s.d
    heads = inner // STATE
    conv = inner + 2 * GROUPS * STATE
    return {
        "ssm_in.weight": Tensor((inner + conv + heads, s.d)),
        "ssm_conv1d.weight": Tensor((conv, CONV)),
        "ssm_conv1d.bias": Tensor((conv,), "bias", 0.1),
        "ssm_dt.bias": Tensor((heads,), "bias"),
        "ssm_a": Tensor((heads, 1), "norm", -0.5),
        "ssm_d": Tensor((heads, 1), "norm"),
        "ssm_norm.weight": Tensor((GROUPS, inner // GROUPS), "norm"),
        "ssm_out.weight": Tensor((s.d, inner)),
    }


def _mamba2_keys(s: TinySpec) -> dict[str, Value]:
    return {
        "attention.head_count_kv": _kv_heads(s),
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": 2 * s.d,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": 2 * s.d // STATE,
        "ssm.group_count": GROUPS,
    }


def _granite_hybrid(s: TinySpec, layer: int) -> Tensors:
    mixer = attention(s) if layer else _mamba2(s)
    return norms(s.d, "attn_norm", "ffn_norm") | mixer | feed_forward(s)


def _nemotron_h(s: TinySpec, layer: int) -> Tensors:
    """A layer is one of recurrence, attention and feed-forward."""
    dense = feed_forward(s)
    del dense["ffn_gate.weight"]
    return norms(s.d, "attn_norm") | [_mamba2(s), attention(s), dense][layer]


def _falcon_h1(s: TinySpec, layer: int) -> Tensors:
    """Recurrence and attention side by side in every layer."""
    return norms(s.d, "attn_norm") | _mamba2(s) | attention(s) | feed_forward(s) | {
        "ffn_norm": Tensor((s.d,), "norm")
    }


JAMBA_RANK = 8


def _jamba(s: TinySpec, layer: int) -> Tensors:
    inner, state = 2 * s.d, 16
    mamba = {
        "ssm_in.weight": Tensor((2 * inner, s.d)),
        "ssm_conv1d.weight": Tensor((inner, CONV)),
        "ssm_conv1d.bias": Tensor((inner,), "bias", 0.1),
        "ssm_x.weight": Tensor((JAMBA_RANK + 2 * state, inner)),
        "ssm_dt.weight": Tensor((inner, JAMBA_RANK)),
        "ssm_dt.bias": Tensor((inner,), "bias", 0.1),
        "ssm_a": Tensor((inner, state), "norm", -0.5),
        "ssm_d": Tensor((inner,), "norm"),
        "ssm_out.weight": Tensor((s.d, inner)),
    }
    mamba |= norms(JAMBA_RANK, "ssm_dt_norm") | norms(state, "ssm_b_norm", "ssm_c_norm")
    mixer = attention(s) if layer else mamba
    return norms(s.d, "attn_norm", "ffn_norm") | mixer | (experts(s) if layer else feed_forward(s))


def _delta_net(s: TinySpec) -> Tensors:
    """Gated delta rule of Qwen3-Next, without the projections of its two gates."""
    keys, values, heads = GROUPS * STATE, 2 * GROUPS * STATE, 2 * GROUPS
    return {
        "attn_qkv.weight": Tensor((2 * keys + values, s.d)),
        "attn_gate.weight": Tensor((values, s.d)),
        "ssm_conv1d.weight": Tensor((2 * keys + values, CONV)),
        "ssm_dt.bias": Tensor((heads,), "bias"),
        "ssm_a": Tensor((heads,), "norm", -0.5),
        "ssm_norm.weight": Tensor((STATE,), "norm"),
        "ssm_out.weight": Tensor((s.d, values)),
    }


def _delta_net_keys(s: TinySpec) -> dict[str, Value]:
    return {
        "full_attention_interval": 2,
        "rope.dimension_count": s.head_dim // 2,
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": 2 * GROUPS * STATE,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": 2 * GROUPS,
        "ssm.group_count": GROUPS,
    }


def _gated_attention(s: TinySpec) -> Tensors:
    return normed_attention(s) | {"attn_q.weight": Tensor((2 * s.q_dim, s.d))}


def _qwen3next(s: TinySpec, layer: int) -> Tensors:
    delta = _delta_net(s) | {"ssm_ba.weight": Tensor((4 * GROUPS, s.d))}
    return (
        norms(s.d, "attn_norm", "post_attention_norm")
        | (_gated_attention(s) if layer % 2 else delta)
        | experts(s)
        | shared_expert(s)
        | {"ffn_gate_inp_shexp.weight": Tensor((s.d,), "bias", s.d**-0.5)}
    )


def _qwen35(s: TinySpec, layer: int) -> Tensors:
    delta = _delta_net(s) | {
        "ssm_beta.weight": Tensor((2 * GROUPS, s.d)),
        "ssm_alpha.weight": Tensor((2 * GROUPS, s.d)),
    }
    return (
        norms(s.d, "attn_norm", "post_attention_norm")
        | (_gated_attention(s) if layer % 2 else delta)
        | feed_forward(s)
    )


HYBRID = {
    "lfm2": Architecture(
        "lfm2",
        _lfm2,
        keys=lambda s: {"attention.head_count_kv": _kv_heads(s), "shortconv.l_cache": 3},
        tied=True,
        output_norm="token_embd_norm",
    ),
    "granitehybrid": Architecture(
        "granitehybrid",
        _granite_hybrid,
        keys=lambda s: _mamba2_keys(s) | {"attention.scale": s.head_dim**-0.5},
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        _nemotron_h,
        keys=lambda s: _mamba2_keys(s)
        | {
            "attention.head_count_kv": [0, s.n_kv_heads, 0],
            "feed_forward_length": [0, 0, s.d_ff],
            "attention.layer_norm_epsilon": 1e-5,
        },
        shape={"n_layers": 3},
    ),
    "falcon-h1": Architecture(
        "falcon-h1",
        _falcon_h1,
        keys=lambda s: _mamba2_keys(s) | {"attention.head_count_kv": s.n_kv_heads},
    ),
    "jamba": Architecture(
        "jamba",
        _jamba,
        keys=lambda s: EXPERTS
        | {
            "attention.head_count_kv": _kv_heads(s),
            "ssm.conv_kernel": CONV,
            "ssm.inner_size": 2 * s.d,
            "ssm.state_size": 16,
            "ssm.time_step_rank": JAMBA_RANK,
        },
    ),
    "qwen3next": Architecture(
        "qwen3next",
        _qwen3next,
        keys=lambda s: _delta_net_keys(s)
        | EXPERTS
        | {"expert_feed_forward_length": s.d_ff, "expert_shared_feed_forward_length": s.d_ff},
    ),
    "qwen35": Architecture(
        "qwen35",
        _qwen35,
        keys=lambda s: _delta_net_keys(s)
        | {"rope.dimension_sections": [s.head_dim // 4, 0, 0, 0]},
    ),
}
