"""Prefill tokens/s of IceLlama against stock llama.cpp with flash attention on and off.

Run `python benchmarks/prefill.py`. The time ends after the first decoded token, so that whatever
is left to build after the prompt counts; building the index is part of it.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing

import llama_cpp
import numpy as np
from command import Row, Setup, command

from icecache_local import IceLlama


def seconds_of(llm: llama_cpp.Llama, tokens: list[int]) -> float:
    """Read a prompt into an empty context and decode one token."""
    llm.reset()
    start = time.perf_counter()
    llm.eval(tokens[:-1])
    llm.eval(tokens[-1:])
    return time.perf_counter() - start


def print_table(rows: list[Row]) -> None:
    """Print the rows."""
    titles = ["tokens", "stock on", "stock off", "ours", "ratio"]
    print("  ".join(f"{title:>9}" for title in titles))
    for row in rows:
        numbers = [row["stock_on_tps"], row["stock_off_tps"], row["ours_tps"], row["ratio"]]
        print("  ".join([f"{row['n_tokens']:>9}", *(f"{x:9.2f}" for x in numbers)]))
    print("prompt tokens per second")


@command("prefill", lengths="4096,16384", rounds=3, print_table=print_table)
def main(n_tokens: int, setup: Setup) -> Row:
    """Print prefill tokens/s of IceLlama and stock llama.cpp, medians over rounds."""
    tokens = np.random.default_rng(0).integers(0, 4096, n_tokens + 1).tolist()
    options = setup.context_options(n_tokens + 1)
    on = llama_cpp.Llama(flash_attn=True, **options)
    off = llama_cpp.Llama(flash_attn=False, **options)
    ours = IceLlama(cache=setup.cache, **options)
    with closing(on), closing(off), closing(ours):
        contexts = {"stock_on": on, "stock_off": off, "ours": ours}
        warm = min(n_tokens, ours._kv.n_cells + 64)  # far enough to compile every kernel
        for llm in contexts.values():
            seconds_of(llm, tokens[:warm])
        rounds = [
            {name: seconds_of(llm, tokens) for name, llm in contexts.items()}
            for _ in range(setup.rounds)
        ]
    row: Row = {"n_tokens": n_tokens}
    for name in contexts:
        row[f"{name}_tps"] = n_tokens / statistics.median(r[name] for r in rounds)
    row["ratio"] = row["ours_tps"] / max(row["stock_on_tps"], row["stock_off_tps"])
    return row


if __name__ == "__main__":
    main()
