"""A sequence of random K and V in caches without llama.cpp, saved and opened like a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from xxhash import xxh3_128

from icecache_local.config import CacheConfig, ModelShape
from icecache_local.device.host import HostDevice
from icecache_local.layer_cache import LayerCache
from icecache_local.sessions.library import Library
from icecache_local.sessions.session import Session
from icecache_local.sessions.settings import Settings
from icecache_local.sessions.snapshot import Image, Layout
from icecache_local.stats import Counters

N_CTX, N_BATCH = 4096, 64
SHAPE = ModelShape(2, 4, 2, 12, 8)
CONFIG = CacheConfig(budget=32, sink=8, window=16, candidate_pages=8)
SETTINGS = Settings(CONFIG, N_CTX, N_BATCH)
FINGERPRINT = {"name": "random", "architecture": "none", "model": "0"}
N_CARRIERS = CONFIG.budget - 2
LAYERS = (0, 3)


class ArrayDevice(HostDevice):
    """Cells in arrays of our own; the last N_BATCH cells take the new tokens."""

    def __init__(self) -> None:
        n_cells = N_CARRIERS + N_BATCH
        self.k = np.zeros((n_cells, SHAPE.n_kv_heads, SHAPE.head_dim_k), np.uint16)
        self.v = np.zeros((n_cells, SHAPE.n_kv_heads, SHAPE.head_dim_v), np.uint16)


def new_layers() -> dict[int, LayerCache]:
    """Empty caches."""
    carriers = np.arange(N_CARRIERS, dtype=np.int32)
    return {
        i: LayerCache(i, SHAPE, CONFIG, ArrayDevice(), carriers, N_CTX, N_BATCH, Counters())
        for i in LAYERS
    }


class RandomSequence:
    """What KVCache and IceLlama do to a session, with random numbers for a model."""

    def __init__(self, rng: np.random.Generator, n_tokens: int = 3 * N_BATCH) -> None:
        self.rng, self.layers = rng, new_layers()
        self.tokens = np.zeros(0, np.int32)
        self.layout = Layout(np.arange(N_CARRIERS + 1, dtype=np.int32), 1)
        self.journal = None
        for first in range(0, n_tokens, N_BATCH):
            self.append(min(N_BATCH, n_tokens - first))

    @classmethod
    def opened(cls, session: Session, rng: np.random.Generator) -> RandomSequence:
        """The sequence as it was last saved."""
        self = cls(rng, 0)
        snapshot = session.snapshot()
        for number, cache in self.layers.items():
            snapshot.load_layer(number, cache)
        self.tokens, self.layout = session.replay(snapshot, self.layers)
        self.journal = session.journal
        for cache in self.layers.values():
            cache.restore(cache.sink_cells, 0)
            cache.fill_slots()
        return self

    def append(self, n: int) -> None:
        """Append `n` tokens at once; one is a decode step."""
        cells = N_CARRIERS + self.rng.permutation(N_BATCH)[:n]
        for cache in self.layers.values():
            for array in (cache.device.k, cache.device.v):
                values = self.rng.standard_normal((n, *array.shape[1:])).astype(np.float16)
                array[cells] = values.view(np.uint16)
            cache.append(cells)
            if n == 1:
                q = self.rng.standard_normal((SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
                cache.load(q, 0.3, real_from=cache.n_tokens - 2)
        new = self.rng.integers(0, 1000, n, np.int32)
        self.tokens = np.concatenate([self.tokens, new])
        if self.journal is not None:
            self.journal.appended(n)

    def truncate(self, n_tokens: int) -> None:
        """Drop the tokens from `n_tokens` on."""
        if self.journal is not None:
            self.journal.truncating(n_tokens)
        for cache in self.layers.values():
            cache.truncate(n_tokens)
        self.tokens = self.tokens[:n_tokens]

    def step(self) -> None:
        """Do something that a conversation might do."""
        kind = self.rng.integers(4)
        if len(self.tokens) > N_CTX - 300 or (kind == 0 and len(self.tokens) > 60):
            self.truncate(int(self.rng.integers(N_CARRIERS + 2, len(self.tokens) + 1)))
        elif kind == 1:
            for _ in range(int(self.rng.integers(1, 30))):
                self.append(1)
        else:
            for _ in range(int(self.rng.integers(1, 4))):
                self.append(int(self.rng.integers(1, N_BATCH + 1)))
        real = min(int(self.rng.integers(1, 4)), len(self.tokens) - N_CARRIERS)
        self.layout = Layout(self.rng.permutation(N_CARRIERS + real).astype(np.int32), real)

    def save(self, session: Session, compact: bool = False) -> None:
        """Save everything."""
        session.save(self.image, {"tokens": len(self.tokens)}, compact)
        self.journal = session.journal

    def keep(self, library: Library, read_s: float = 1.0) -> bool:
        """Put everything into a library."""
        return library.store(self.image, read_s)

    @property
    def image(self) -> Image:
        """All that is stored."""
        return Image(FINGERPRINT, SETTINGS, self.tokens, self.layout, self.layers)

    def digest(self) -> str:
        """A hash of all that a session must bring back."""
        digest = xxh3_128(self.tokens.tobytes())
        digest.update(self.layout.cells.tobytes() + bytes([self.layout.n_real]))
        for cache in self.layers.values():
            for name, table in cache.tables().items():
                digest.update(name.encode() + np.ascontiguousarray(table).tobytes())
            for rows in cache.rows(0, len(self.tokens)):
                digest.update(rows.tobytes())
        return digest.hexdigest()

    def check(self) -> None:
        """Every table is consistent with every other."""
        for cache in self.layers.values():
            cache.check_integrity(len(self.tokens))


def saved(folder: Path, seed: int = 0, n_steps: int = 3) -> str:
    """Make a session with a snapshot and a journal; the digest of its state."""
    session = Session(folder, create=True)
    sequence = RandomSequence(np.random.default_rng(seed))
    sequence.save(session)
    for _ in range(n_steps):
        sequence.step()
        sequence.save(session)
    session.close()
    return sequence.digest()


def digest_of(folder: Path) -> str:
    """Open a session; the digest of its state, which is checked."""
    session = Session(folder)
    try:
        sequence = RandomSequence.opened(session, np.random.default_rng(0))
        sequence.check()
        return sequence.digest()
    finally:
        session.close()
