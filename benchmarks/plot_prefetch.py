"""Draw docs/prefetch.png: what computes and what reads while a question is read, from a trace.

Run `python benchmarks/plot_prefetch.py`.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import matplotlib
import numpy as np
from fill import fill_ice
from models import OUT, ROOT, qwen3_slice
from sessions import Bench

from icecache_local import IceLlama
from icecache_local.attention import Attention
from icecache_local.disk_pages import DiskPages
from icecache_local.mdci import MDCIndex
from icecache_local.reprefill import Reprefill

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

LANES = ("read ahead", "read now", "score pages", "attention", "index")
Event = tuple[str, float, float, int]


@contextmanager
def traced(bench: Bench) -> Iterator[list[Event]]:
    """Collect (lane, start, seconds, bytes read) while the block runs."""
    events: list[Event] = []
    methods = {
        (DiskPages, "read"): None,
        (Reprefill, "choose"): "score pages",
        (Attention, "run"): "attention",
        (MDCIndex, "begin_insert"): "index",
    }
    before = {key: getattr(*key) for key in methods}

    def wrap(call: Callable, lane: str | None) -> Callable:
        def timed(self: object, *args: object) -> object:
            start = time.perf_counter()
            n_before = getattr(self, "read_bytes", 0)
            try:
                return call(self, *args)
            finally:
                ahead = threading.current_thread() is not threading.main_thread()
                name = lane or ("read ahead" if ahead else "read now")
                n_read = getattr(self, "read_bytes", 0) - n_before
                events.append((name, start, time.perf_counter() - start, n_read))

        return timed

    for key, lane in methods.items():
        setattr(*key, wrap(before[key], lane))
    try:
        yield events
    finally:
        for key, call in before.items():
            setattr(*key, call)


def draw(parts: list[tuple[str, list[Event]]], label: str, png: str) -> None:
    """One panel per way of reading."""
    figure, panels = plt.subplots(len(parts), 1, figsize=(9, 5), sharex=True)
    for panel, (title, events) in zip(panels, parts, strict=True):
        first = min(start for _, start, _, _ in events)
        for i, lane in enumerate(LANES):
            bars = [(1000 * (s - first), 1000 * d) for n, s, d, _ in events if n == lane]
            panel.broken_barh(bars, (i - 0.4, 0.8), facecolors=f"C{i}", edgecolor="white")
        n_bytes = sum(event[3] for event in events)
        panel.set_title(f"{title}: {n_bytes / 2**20:.0f} MiB read", loc="left", fontsize=10)
        panel.set_yticks(range(len(LANES)), LANES)
        panel.invert_yaxis()
    panels[-1].set_xlabel(label)
    figure.tight_layout()
    figure.savefig(png, dpi=110)


@click.command()
@click.option("--tokens", default=16384, help="Stored before the question.")
@click.option("--layers", default=8, help="Of the model.")
@click.option("--png", default=ROOT / "docs" / "prefetch.png", help="The picture.")
def main(tokens: int, layers: int, png: str) -> None:
    """Trace one question, exact and selective."""
    OUT.mkdir(exist_ok=True)
    rng, work = np.random.default_rng(0), Path(tempfile.mkdtemp(dir=OUT))
    options = {"n_ctx": tokens + 1024, "n_threads": 2, "n_threads_batch": 2, "verbose": False}
    parts = []
    try:
        with closing(IceLlama(str(qwen3_slice(layers, "q8_0")), **options)) as llm:
            fill_ice(llm, tokens, rng)
            llm.eval([1])
            bench = Bench(llm, work)
            for title, share in (("all pages (exact)", None), ("10% of the pages", 0.1)):
                bench.select(share)
                for _ in range(2):  # the first round warms up
                    bench.open()
                    with traced(bench) as events:
                        bench.ask()
                parts.append((title, events))
    finally:
        shutil.rmtree(work)
    draw(parts, f"ms; a question of 32 tokens behind {tokens:,}, {layers} layers", png)
    for title, events in parts:
        for lane in LANES:
            ms = 1000 * sum(d for name, _, d, _ in events if name == lane)
            print(f"{title:<20}{lane:<14}{ms:8.1f} ms")


if __name__ == "__main__":
    main()
