"""CacheStats: what the cache did and what it holds; the unit is in every name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kv_cache import KVCache


@dataclass(frozen=True)
class CacheStats:
    """A snapshot of one sequence's cache.

    Attributes
    ----------
    n_tokens : int
        Tokens of the sequence.
    resident_tokens : int
        Tokens per KV head that attention reads in a decode step.
    device_bytes, host_bytes, index_bytes : int
        Cells of llama.cpp; K and V pages in host memory; index and page tables.
    disk_bytes : int
        K and V pages that are on the disk alone.
    disk_read_bytes, disk_written_bytes : int
        What went from and to the disk for the current sequence.
    prefill_tokens, decode_tokens : int
        Tokens read and generated so far.
    prefill_s, decode_s : float
        Time inside llama_decode for them.
    hit_rate : float
        Share of the selected tokens that were resident already.
    uploaded_tokens : float
        Rows uploaded per decode step, layer and KV head.
    stage_ms : dict of str to float
        Time per decode step of each stage, all layers together.
    """

    n_tokens: int
    resident_tokens: int
    device_bytes: int
    host_bytes: int
    index_bytes: int
    disk_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float
    hit_rate: float
    uploaded_tokens: float
    stage_ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, kv: KVCache) -> CacheStats:
        """Take stock of a cache as it is now."""
        layers, counters = kv.layers.values(), kv.counters
        steps = max(1, counters.sparse_steps)
        selected = max(1, counters.selected_rows)
        tiers = kv.budget.tiers if kv.budget is not None else []
        heads = sum(cache.shape.n_kv_heads for cache in layers)
        most = kv.config.budget + kv.n_swa if kv.sparse else kv.n_cells
        return cls(
            n_tokens=kv.n_tokens,
            resident_tokens=min(kv.n_tokens, most),
            device_bytes=sum(device.nbytes for device in kv.devices.values()),
            host_bytes=sum(cache.pages.nbytes_kv for cache in layers),
            disk_bytes=sum(tier.nbytes_absent for tier in tiers),
            disk_read_bytes=sum(tier.disk.read_bytes for tier in tiers),
            disk_written_bytes=sum(tier.disk.written_bytes for tier in tiers),
            index_bytes=sum(cache.nbytes_index for cache in layers),
            prefill_tokens=counters.tokens["prefill"],
            prefill_s=counters.seconds["prefill"],
            decode_tokens=counters.tokens["decode"],
            decode_s=counters.seconds["decode"],
            hit_rate=1 - counters.uploaded_rows / selected if counters.selected_rows else 1.0,
            uploaded_tokens=counters.uploaded_rows / steps / max(1, heads),
            stage_ms={name: ns / steps / 1e6 for name, ns in counters.stage_ns.items()},
        )

    def as_dict(self) -> dict[str, object]:
        """Fields by name, for JSON."""
        return asdict(self)


class Counters:
    """Running sums behind `CacheStats`."""

    def __init__(self) -> None:
        self.tokens = {"prefill": 0, "decode": 0}
        self.seconds = {"prefill": 0.0, "decode": 0.0}
        self.sparse_steps = 0
        self.selected_rows = 0
        self.uploaded_rows = 0
        self.stage_ns: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str, n_tokens: int) -> Iterator[None]:
        """Count one llama_decode of `n_tokens` as "prefill" or "decode"; not if it fails."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
        self.tokens[name] += n_tokens

    def add_stage(self, name: str, start_ns: int) -> int:
        """Add the time since `start_ns` to a stage; returns the time now."""
        now = time.perf_counter_ns()
        self.add_ns(name, now - start_ns)
        return now

    def add_ns(self, name: str, ns: int) -> None:
        """Add a duration to a stage."""
        self.stage_ns[name] = self.stage_ns.get(name, 0) + ns
