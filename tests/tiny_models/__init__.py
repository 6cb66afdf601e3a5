"""Random-weight GGUF models: small enough for tests, with attention that is far from uniform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from .architecture import Value
from .dense import DENSE, PHI3_SHORT_CONTEXT
from .hybrid import HYBRID
from .latent import LATENT
from .sliding import SLIDING
from .spec import LOGIT_STD, Tensor, TinySpec
from .tokenizer import BOS, EOS, add_tokenizer, is_text

__all__ = [
    "ARCHITECTURES",
    "BOS",
    "EOS",
    "PHI3_SHORT_CONTEXT",
    "TinySpec",
    "add_metadata",
    "add_weight",
    "finish",
    "is_text",
    "spec_of",
    "write_lora",
    "write_model",
]

ARCHITECTURES = DENSE | SLIDING | HYBRID | LATENT
# Matrices that llama.cpp's converters leave in f32 whatever the file's type.
ALWAYS_F32 = (
    *("ssm_conv1d", "shortconv.conv", "ssm_a", "ssm_d", "ssm_norm", "ffn_gate_inp"),
    ".bias",
)
_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def spec_of(arch: str, **fields: int | str) -> TinySpec:
    """Return the spec of an architecture with the fields that it needs, and `fields`."""
    return replace(TinySpec(arch), **{**fields, **ARCHITECTURES[arch].shape})


def add_metadata(
    writer: gguf.GGUFWriter,
    spec: TinySpec,
    rope_base: float = 10000.0,
    keys: dict[str, Value] | None = None,
) -> None:
    """Write the common hyperparameters, those in `keys` over them, and the tokenizer."""
    # llama.cpp expects certain tokens in a vocabulary if the name has "phi3" in it.
    writer.add_name(f"random {spec.arch.replace('phi3', 'Phi 3')}")
    common: dict[str, Value] = {
        "context_length": spec.n_ctx_train,
        "embedding_length": spec.d,
        "block_count": spec.n_layers,
        "feed_forward_length": spec.d_ff,
        "attention.head_count": spec.n_heads,
        "attention.head_count_kv": spec.n_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": rope_base,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": spec.n_vocab,
    }
    for key, value in (common | (keys or {})).items():
        _add_key(writer, f"{writer.arch}.{key}", value)
    add_tokenizer(writer, spec.n_vocab)


def _add_key(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def add_weight(writer: gguf.GGUFWriter, name: str, x: np.ndarray, dtype: str) -> None:
    """Add one float32 weight: matrices in `dtype`, vectors as f32."""
    kind = _TYPES[dtype if x.ndim > 1 else "f32"]
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, x)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, x.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything to the file and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(spec: TinySpec) -> Iterator[tuple[str, np.ndarray]]:
    arch = ARCHITECTURES[spec.arch]
    rng = np.random.default_rng(spec.seed)
    # Only text tokens get likely logits, so that generation neither ends nor breaks UTF-8.
    no_text = [not is_text(token) for token in range(spec.n_vocab)]
    embedding = rng.standard_normal((spec.n_vocab, spec.d), np.float32)
    # A tied embedding is small, so that the logits tell of more than the latest token.
    output_gain = 10.0 if arch.tied else 1.0
    if arch.tied:
        embedding *= LOGIT_STD / output_gain / spec.d**0.5
        embedding[no_text] = 0
    yield "token_embd.weight", embedding
    for layer in range(spec.n_layers):
        for name, tensor in arch.block(spec, layer).items():
            yield f"blk.{layer}.{name}", tensor.draw(rng)
    for name, tensor in arch.outer(spec).items():
        yield name, tensor.draw(rng)
    yield f"{arch.output_norm}.weight", Tensor((spec.d,), "norm", output_gain).draw(rng)
    if not arch.tied:
        output = Tensor((spec.n_vocab, spec.d), gain=LOGIT_STD).draw(rng)
        output[no_text] = 0
        yield "output.weight", output


def write_model(path: Path, spec: TinySpec) -> Path:
    """Write the model of `spec` to `path`.

    Parameters
    ----------
    path : Path
        The file to write.
    spec : TinySpec
        Its shape, type and seed.

    Returns
    -------
    Path
        `path`.
    """
    arch = ARCHITECTURES[spec.arch]
    writer = gguf.GGUFWriter(str(path), arch.name)
    add_metadata(writer, spec, keys=arch.keys(spec))
    for name, x in _weights(spec):
        always_f32 = any(part in name for part in ALWAYS_F32)
        add_weight(writer, name, x, "f32" if always_f32 else spec.dtype)
    finish(writer)
    return path


def write_lora(path: Path, spec: TinySpec, rank: int = 4) -> Path:
    """Write a random LoRA adapter of every layer's Q and V projection to `path`."""
    arch = ARCHITECTURES[spec.arch]
    rng = np.random.default_rng(spec.seed + 1)
    writer = gguf.GGUFWriter(str(path), arch.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(spec.n_layers):
        for name in ("attn_q.weight", "attn_v.weight"):
            rows, columns = arch.block(spec, layer)[name].shape
            key = f"blk.{layer}.{name}"
            add_weight(writer, f"{key}.lora_a", Tensor((rank, columns)).draw(rng), "f32")
            add_weight(writer, f"{key}.lora_b", Tensor((rows, rank)).draw(rng), "f32")
    finish(writer)
    return path
