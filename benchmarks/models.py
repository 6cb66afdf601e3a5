"""Random-weight models with the shapes of real ones, for timing."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # tests/tiny_models.py is the project's only GGUF writer
from tiny_models import TinySpec, write_model  # noqa: E402

OUT = Path(os.environ.get("ICECACHE_BENCHMARKS", ROOT / "benchmarks" / "out"))


@dataclasses.dataclass(frozen=True)
class Shape:
    """A real model's shape: that of a layer, how many there are, and its vocabulary."""

    spec: TinySpec
    n_layers: int
    n_vocab: int


QWEN3_06B = TinySpec(
    "qwen3", d=1024, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=3072, n_ctx_train=1 << 20
)
_LLAMA_8B = TinySpec(
    "llama", d=4096, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=14336, n_ctx_train=1 << 20
)
_QWEN3_4B = TinySpec(
    "qwen3", d=2560, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=9728, n_ctx_train=1 << 20
)
SHAPES = {
    "qwen3-0.6b": Shape(QWEN3_06B, 28, 151_936),
    "qwen3-4b": Shape(_QWEN3_4B, 36, 151_936),
    "llama-3.1-8b": Shape(_LLAMA_8B, 32, 128_256),
}


def model_slice(name: str, n_layers: int = 4, dtype: str = "f16") -> Path:
    """Path of a model with `n_layers` layers of a shape in `SHAPES` and random weights.

    Its output matrix is cut in the same proportion, so that a slice of the layers carries its
    share of it. The file is written once and kept in `benchmarks/out`.
    """
    shape = SHAPES[name]
    n_vocab = -(-shape.n_vocab * n_layers // shape.n_layers)
    spec = dataclasses.replace(shape.spec, n_layers=n_layers, n_vocab=n_vocab, dtype=dtype)
    path = OUT / spec.filename
    if not path.exists():
        OUT.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        write_model(unfinished, spec)
        unfinished.replace(path)
    return path


def qwen3_slice(n_layers: int = 4, dtype: str = "f16") -> Path:
    """Path of a slice of Qwen3-0.6B's shape; see `model_slice`."""
    return model_slice("qwen3-0.6b", n_layers, dtype)
