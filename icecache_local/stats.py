"""CacheStats: what the cache did and what it holds; the unit is in every name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


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
