"""The reference model as a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np

from .vocabulary import PRE, SPECIAL, Vocabulary

# The user's text, then the words that make the model answer.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %} {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} A:{% endif %}"
)


def write(
    path: Path,
    name: str,
    shape: dict[str, float],
    weights: dict[str, np.ndarray],
    vocabulary: Vocabulary,
) -> None:
    """Write the model: matrices as f16, vectors as f32.

    Parameters
    ----------
    path : Path
        Written to a temporary name beside it and renamed.
    name : str
        As `general.name`.
    shape : dict
        Fields of `network.Shape`.
    weights : dict of str to ndarray
        Float32, by their names in GGUF.
    vocabulary : Vocabulary
    """
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = gguf.GGUFWriter(str(unfinished), "qwen3")
    writer.add_name(name)
    writer.add_context_length(shape["n_ctx_train"])
    writer.add_embedding_length(shape["d"])
    writer.add_block_count(shape["n_layers"])
    writer.add_feed_forward_length(shape["d_ff"])
    writer.add_head_count(shape["n_heads"])
    writer.add_head_count_kv(shape["n_kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape["n_vocab"])
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(
        [kinds.CONTROL if token in SPECIAL else kinds.NORMAL for token in vocabulary.tokens]
    )
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, x in weights.items():
        writer.add_tensor(key, x.astype(np.float16 if x.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def read(path: Path) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Read what `write` wrote.

    Returns
    -------
    shape : dict
    weights : dict of str to ndarray
        Float32.
    """
    reader = gguf.GGUFReader(str(path))
    weights = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in reader.tensors
    }

    def value(key: str) -> float:
        return reader.fields[f"qwen3.{key}"].contents()

    shape = {
        "n_vocab": len(weights["token_embd.weight"]),
        "n_layers": value("block_count"),
        "d": value("embedding_length"),
        "d_ff": value("feed_forward_length"),
        "n_heads": value("attention.head_count"),
        "n_kv_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "rope_base": value("rope.freq_base"),
        "n_ctx_train": value("context_length"),
    }
    return shape, weights
