"""Print models.txt: GGUF models that suit machines of 8 to 24 GB, through the planner.

Usage: python tools/models_table.py > models.txt
"""

from __future__ import annotations

from pathlib import Path

from icecache_local.config import CacheConfig
from icecache_local.gguf_info import ModelInfo
from icecache_local.planner import format_bytes, make_plan

SYSTEM_BYTES = 2 << 30  # left to the operating system and other programs
LENGTHS = [k << 10 for k in (32, 64, 128, 256)]

HEADER = """\
# GGUF models by the memory of the machine (RAM, no GPU needed), one a line. 2 GiB are left to the
# system; n_ctx is the largest of 32k, 64k, 128k and 256k tokens that fits and that the model was
# trained for. Written by tools/models_table.py: file sizes are approximate, the rest is the
# planner's estimate at the default budget of 256 tokens. "icecache-local plan --model FILE"
# tells the same of a file you have, for the memory that is free.
#
"""


def model(
    repository: str,
    file: str,
    gigabytes: float,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    n_embd: int,
    n_ff: int,
    n_vocab: int,
    n_ctx_train: int,
    n_experts_used: int = 0,
) -> tuple[str, ModelInfo]:
    """Describe a published model by its repository, file, size in 10^9 bytes and shape."""
    return repository, ModelInfo(
        path=Path(file),
        architecture="",
        name=file,
        n_layers=n_layers,
        n_heads=n_heads,
        kv_heads=(n_kv_heads,) * n_layers,
        sliding=(False,) * n_layers,
        head_dim_k=head_dim,
        head_dim_v=head_dim,
        head_dim_k_swa=head_dim,
        head_dim_v_swa=head_dim,
        n_swa=0,
        n_embd=n_embd,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_experts_used=n_experts_used,
        n_ctx_train=n_ctx_train,
        weight_bytes=int(gigabytes * 1e9),
        block_bytes=(),  # only asked for where layers go to a GPU
        is_mla=False,
        is_recurrent=False,
        max_alibi_bias=0.0,
    )


# Columns: repository, file, 10^9 bytes; layers, query heads, KV heads, head dim; width,
# feed-forward (experts used x width), vocabulary, trained context, experts used.
# fmt: off
MODELS = {
    8: [
        model("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf", 0.81,
              16, 32, 8, 64, 2048, 8192, 128256, 131072),
        model("bartowski/Qwen2.5-3B-Instruct-GGUF", "Qwen2.5-3B-Instruct-Q4_K_M.gguf", 1.93,
              36, 16, 2, 128, 2048, 11008, 151936, 32768),
    ],
    12: [
        model("bartowski/Llama-3.2-3B-Instruct-GGUF", "Llama-3.2-3B-Instruct-Q4_K_M.gguf", 2.02,
              28, 24, 8, 128, 3072, 8192, 128256, 131072),
        model("unsloth/Qwen3-4B-Instruct-2507-GGUF", "Qwen3-4B-Instruct-2507-Q4_K_M.gguf", 2.50,
              36, 32, 8, 128, 2560, 9728, 151936, 262144),
        model("bartowski/Qwen2.5-7B-Instruct-1M-GGUF", "Qwen2.5-7B-Instruct-1M-Q4_K_M.gguf", 4.68,
              28, 28, 4, 128, 3584, 18944, 152064, 1010000),
    ],
    16: [
        model("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
              "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", 4.92,
              32, 32, 8, 128, 4096, 14336, 128256, 131072),
        model("bartowski/Qwen2.5-7B-Instruct-1M-GGUF", "Qwen2.5-7B-Instruct-1M-Q5_K_M.gguf", 5.44,
              28, 28, 4, 128, 3584, 18944, 152064, 1010000),
        model("bartowski/Mistral-Nemo-Instruct-2407-GGUF",
              "Mistral-Nemo-Instruct-2407-Q4_K_M.gguf", 7.48,
              40, 32, 8, 128, 5120, 14336, 131072, 131072),
    ],
    24: [
        model("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
              "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", 4.92,
              32, 32, 8, 128, 4096, 14336, 128256, 131072),
        model("bartowski/Qwen2.5-7B-Instruct-1M-GGUF", "Qwen2.5-7B-Instruct-1M-Q4_K_M.gguf", 4.68,
              28, 28, 4, 128, 3584, 18944, 152064, 1010000),
        model("bartowski/Qwen2.5-14B-Instruct-1M-GGUF",
              "Qwen2.5-14B-Instruct-1M-Q4_K_M.gguf", 8.99,
              48, 40, 8, 128, 5120, 13824, 152064, 1010000),
        model("bartowski/Mistral-Nemo-Instruct-2407-GGUF",
              "Mistral-Nemo-Instruct-2407-Q4_K_M.gguf", 7.48,
              40, 32, 8, 128, 5120, 14336, 131072, 131072),
    ],
}
# fmt: on


def table() -> str:
    """Return the text of models.txt."""
    rows = [
        (
            "machine",
            "repository",
            "file",
            "size",
            "n_ctx",
            "total",
            "cells",
            "host+index",
            "full KV",
        )
    ]
    for gigabytes, models in MODELS.items():
        available = (gigabytes << 30) - SYSTEM_BYTES
        for repository, info in models:
            n_ctx = _longest(info, available)
            plan = make_plan(info, CacheConfig(), n_ctx, available)
            sizes = plan.total, plan.cells, plan.host + plan.index, plan.full_kv
            rows.append(
                (f"{gigabytes} GB", repository, info.name, format_bytes(plan.weights), str(n_ctx))
                + tuple(map(format_bytes, sizes))
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return HEADER + "\n".join(["# " + lines[0], *("  " + line for line in lines[1:])]) + "\n"


def _longest(info: ModelInfo, available: int) -> int:
    """Return the largest of `LENGTHS` that fits and was trained for."""
    fitting = [
        n
        for n in LENGTHS
        if n <= info.n_ctx_train and make_plan(info, CacheConfig(), n, available).fits
    ]
    if not fitting:
        raise ValueError(f"{info.name} does not fit {format_bytes(available)} at {LENGTHS[0]}.")
    return fitting[-1]


if __name__ == "__main__":
    print(table(), end="")
