"""TinySpec and Tensor: the shape of a random model and of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

SCORE_STD = 2.5  # standard deviation of attention scores before the softmax
LOGIT_STD = 3.0
QK = SCORE_STD**0.5  # gain of Q and of K that gives such scores


@dataclass(frozen=True)
class TinySpec:
    """Shape of a random model.

    Attributes
    ----------
    arch : str
        A key of `ARCHITECTURES`.
    dtype : str
        "f32", "f16", "q8_0" or "q4_0"; vectors are always f32.
    n_swa : int
        Sliding window in tokens, where the architecture has one.
    seed : int
        Seed of the weights.
    """

    arch: str = "llama"
    n_layers: int = 2
    d: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    d_ff: int = 256
    n_vocab: int = 512
    dtype: str = "f16"
    n_ctx_train: int = 1 << 20
    n_swa: int = 64
    seed: int = 0

    @property
    def q_dim(self) -> int:
        """Rows of the Q projection."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the K and of the V projection."""
        return self.n_kv_heads * self.head_dim

    @property
    def filename(self) -> str:
        """A name that no other spec has."""
        key = repr([getattr(self, f.name) for f in fields(self)]).encode()
        return f"{self.arch}-{self.dtype}-{hashlib.sha1(key).hexdigest()[:12]}.gguf"


@dataclass(frozen=True)
class Tensor:
    """One weight: its GGUF shape as a numpy shape, and how to draw it.

    A matrix [rows, columns] is normal with standard deviation gain / sqrt(columns);
    a norm is gain * (1 + 0.1 normal); a bias is gain * normal.
    """

    shape: tuple[int, ...]
    kind: str = "matrix"
    gain: float = 1.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the weight as a float32 array of `shape`."""
        x = rng.standard_normal(self.shape, np.float32)
        if self.kind == "matrix":
            return x * np.float32(self.gain / np.sqrt(self.shape[-1]))
        if self.kind == "norm":
            return np.float32(self.gain) * (1 + np.float32(0.1) * x)
        return np.float32(self.gain) * x
