"""Decode ms/token of IceLlama against stock llama.cpp with flash attention on and off.

Run `python benchmarks/decode.py`. All contexts use the same threads and the same model, a slice
of Qwen3-0.6B's layers with random weights, and caches filled with random keys and values.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing

import llama_cpp
import numpy as np
from command import Row, Setup, command
from fill import fill_ice, fill_stock
from models import QWEN3_06B

from icecache_local import IceLlama

N_DECODE = 32  # tokens of one timing
N_WARM = 8


def ms_per_token(llm: llama_cpp.Llama, n: int, rng: np.random.Generator) -> float:
    """Decode `n` random tokens one by one; mean ms of one."""
    tokens = rng.integers(0, llm.n_vocab(), n).tolist()
    start = time.perf_counter()
    for token in tokens:
        llm.eval([token])
    return 1000 * (time.perf_counter() - start) / n


def print_table(rows: list[Row]) -> None:
    """Print the rows, and how our time grows from the first length to the last."""
    stages = list(rows[0]["stage_ms"])
    titles = ["tokens", "stock on", "stock off", "ours", "ratio", "hit rate", *stages]
    print("  ".join(f"{title:>9}" for title in titles))
    for row in rows:
        numbers = [row["stock_on_ms"], row["stock_off_ms"], row["ours_ms"], row["ratio"]]
        numbers += [row["hit_rate"], *row["stage_ms"].values()]
        print("  ".join([f"{row['n_tokens']:>9}", *(f"{x:9.2f}" for x in numbers)]))
    growth = rows[-1]["ours_ms"] / rows[0]["ours_ms"]
    print(f"ms per token; ours grows {growth:.2f} times from first to last length")


@command("decode", lengths="4096,16384,32768", rounds=5, print_table=print_table)
def main(n_tokens: int, setup: Setup) -> Row:
    """Print decode ms/token of IceLlama and stock llama.cpp, medians over rounds of 32 tokens."""
    options = setup.context_options(n_tokens + N_WARM + setup.rounds * N_DECODE + 1)
    rng = np.random.default_rng(0)
    on = llama_cpp.Llama(flash_attn=True, **options)
    off = llama_cpp.Llama(flash_attn=False, **options)
    ours = IceLlama(cache=setup.cache, **options)
    with closing(on), closing(off), closing(ours):
        width = QWEN3_06B.n_kv_heads * QWEN3_06B.head_dim
        for stock in (on, off):
            fill_stock(stock, n_tokens, setup.layers, width, rng)
        fill_ice(ours, n_tokens, rng)
        contexts = {"stock_on": on, "stock_off": off, "ours": ours}
        for llm in contexts.values():
            ms_per_token(llm, N_WARM, rng)
        before = ours.cache_stats
        # The contexts take turns, so that a busy moment of the machine hits all of them.
        rounds = [
            {name: ms_per_token(llm, N_DECODE, rng) for name, llm in contexts.items()}
            for _ in range(setup.rounds)
        ]
        after = ours.cache_stats
    row: Row = {"n_tokens": n_tokens}
    for name in contexts:
        row[f"{name}_ms"] = statistics.median(r[name] for r in rounds)
    row["ratio"] = min(row["stock_on_ms"], row["stock_off_ms"]) / row["ours_ms"]
    row |= {name: getattr(after, name) for name in ("hit_rate", "host_bytes", "index_bytes")}
    # stage_ms are means over all steps so far: undo them to get those of the timed steps.
    n_before, n_after = N_WARM, N_WARM + setup.rounds * N_DECODE
    row["stage_ms"] = {
        name: (ms * n_after - before.stage_ms[name] * n_before) / (n_after - n_before)
        for name, ms in after.stage_ms.items()
    }
    return row


if __name__ == "__main__":
    main()
