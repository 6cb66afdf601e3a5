"""A stand-in for IMPRESS on this engine, to time it: 64-token chunks in order, probe heads.

Its rule as ContiguousKV (January 2026) describes it: a few probe heads load all their keys and
each picks the tokens with the most attention; where the picks agree (Jaccard index above 0.6),
the chunks that hold the winners are loaded for all heads, otherwise the layer as a whole.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from icecache_local import IceLlama
from icecache_local.config import PAGE, ModelShape
from icecache_local.disk_tier import DiskTier
from icecache_local.half import FAST, exp_nonpositive, kernel, load
from icecache_local.host_pages import HostPages, OrderedPages
from icecache_local.layer_cache import LayerCache
from icecache_local.sessions.page_file import PageFile, write_pages

CHUNK = 64  # tokens
PROBES = 3  # KV heads
AGREE = 0.6


class Impress:
    """Takes the place of a sequence's `PromptReader`.

    Parameters
    ----------
    llm : IceLlama
        Its prefix is written anew, in order; tokens that follow are not attended to by later
        ones, which no time depends on.
    folder : Path
    share : float
        Share of the tokens to load.
    limit : int
        Bytes of pages that may be in memory.
    agree : float
        Least Jaccard index at which the probes' picks count for all heads; -1: always.
    """

    def __init__(
        self, llm: IceLlama, folder: Path, share: float, limit: int, agree: float = AGREE
    ) -> None:
        self.agree = agree
        kv = llm._kv
        self.n, self.share, self.n_whole, self.n_run = kv.n_tokens, share, 0, 0
        self.limit = limit // len(kv.layers)
        widen(np.zeros(1, np.uint16), held := np.zeros((1, 1), np.float32))  # compiles
        add_softmax(held, held[0])
        folder.mkdir()
        self.stored = {i: _store(folder / str(i), c, self.n) for i, c in kv.layers.items()}

    @property
    def read_bytes(self) -> int:
        """Bytes read so far."""
        return sum(pages.tier.disk.read_bytes for pair in self.stored.values() for pages in pair)

    def part(self, budget: object) -> float:
        """As `PromptReader.part`."""
        return 1.0

    def attend(self, layer: object, cache: LayerCache, cells: np.ndarray, *_: object) -> None:
        """As `PromptReader.attend`."""
        chunks, keys = self.stored[layer.layer]
        keys.tier.trim(None)
        keys.tier.fetch_all()
        wanted = self._choose(cache.device.queries(layer), keys, layer.scale)
        if not keys.tier.nbytes_held <= self.limit // 4:
            keys.tier.trim(self.limit // 4)
        self.n_run += 1
        chunks.tier.trim(None)
        if wanted is None:
            self.n_whole += 1
            chunks.tier.fetch_all()
            loaded = None
        else:
            rows = np.repeat(wanted[None] * CHUNK, len(chunks.fill), axis=0)
            rows = rows[:, :, None] + PAGE * np.arange(CHUNK // PAGE)
            rows = np.minimum(rows.reshape(len(rows), -1), self.n - 1).astype(np.int32)
            chunks.tier.fetch(rows)
            loaded = np.zeros_like(chunks.fill)
            for g, pages_of in enumerate(rows // PAGE):
                loaded[g, pages_of] = chunks.fill[g, pages_of]
        cache.device.attend(layer, chunks, cells, loaded)
        chunks.tier.trim(self.limit * 3 // 4)

    def _choose(self, q: np.ndarray, keys: HostPages, scale: float) -> np.ndarray | None:
        """Chunks to load; None where the probes disagree."""
        dim, group = q.shape[2], keys.shape.group
        votes, picks = np.zeros(self.n, np.float32), []
        k, held = int(np.ceil(self.share * self.n)), np.zeros((self.n, dim), np.float32)
        for g in range(len(keys.fill)):
            widen(keys.kv[g].reshape(-1), held)
            mine = q[:, g * group : (g + 1) * group].reshape(-1, dim) * np.float32(scale)
            mass = np.zeros(self.n, np.float32)
            add_softmax(mine @ held.T, mass)
            votes += mass
            picked = np.zeros(self.n, bool)
            picked[np.argpartition(-mass, k)[:k]] = True
            picks.append(picked)
        pairs = combinations(picks, 2)
        agree = min(np.count_nonzero(a & b) / np.count_nonzero(a | b) for a, b in pairs)
        return np.unique(np.argpartition(-votes, k)[:k] // CHUNK) if agree > self.agree else None


@kernel()
def widen(kv, out):
    """Copy f16 keys (uint16 [n * Dk]) to `out` (float32 [n, Dk])."""
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] = load(kv, i * out.shape[1] + d)


@kernel(fastmath=FAST)
def add_softmax(scores, mass):
    """Add the softmax of every row of `scores` [R, n], which are overwritten, to `mass` [n]."""
    for r in range(scores.shape[0]):
        row = scores[r]
        top, total = row.max(), np.float32(0)
        for i in range(row.shape[0]):
            row[i] = exp_nonpositive(row[i] - top)
            total += row[i]
        share = np.float32(1) / total
        for i in range(row.shape[0]):
            mass[i] += row[i] * share


def _store(path: Path, cache: LayerCache, n: int) -> tuple[HostPages, HostPages]:
    """Write a layer in order: all heads' pages, and the probes' keys alone; both on the disk."""
    k, v = cache.rows(0, n)
    shape, probes = cache.shape, min(PROBES, cache.shape.n_kv_heads)
    narrow = ModelShape(1, probes * shape.group, probes, shape.head_dim_k, 0)
    whole = OrderedPages(shape, k, v, np.arange(n)).pages
    keys = OrderedPages(narrow, k[:, :probes], v[:, :probes, :0], np.arange(n)).pages
    return tuple(_on_disk(path.with_suffix(name), pages, n) for name, pages in
                 ((".chunks", whole), (".keys", keys)))  # fmt: skip


def _on_disk(path: Path, pages: HostPages, n: int) -> HostPages:
    n_pages = -(-n // PAGE)
    order = np.tile(np.arange(n_pages), (len(pages.fill), 1))
    sums = write_pages(path, pages, order)
    stored = HostPages(pages.shape, n_pages)
    stored.n_pages[:] = n_pages
    stored.fill[:, :n_pages] = PAGE
    stored.fill[:, n_pages - 1] = n - PAGE * (n_pages - 1)
    file = PageFile(path, len(pages.fill), n_pages, pages.page_bytes, sums)
    DiskTier(stored, 0, by_attention=False).open_source(file)
    file.close()
    return stored
