"""Sessions on the disk: reopening, reading a new question, and decoding beyond the memory.

Run `python benchmarks/sessions.py --model reference` (the embedded model on a real text),
`python benchmarks/sessions.py --model slice` (layers of Qwen3-0.6B's shape, random weights and
cache), or with a GGUF file of yours (on Python's documentation). icecache-local reads its pages
past the page cache (O_DIRECT); all other files of both sides are dropped from it (posix_fadvise)
before each timing. Models are loaded and kernels compiled beforehand.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import click
import llama_cpp
import numpy as np
from fill import fill_ice, fill_stock
from impress import AGREE, Impress
from models import OUT, QWEN3_06B, qwen3_slice

from icecache_local import CacheConfig, IceLlama, embedded
from icecache_local.demo import answer, read, tokenize
from icecache_local.disk_tier import DiskTier
from icecache_local.hidden_facts import draw_facts, fit_text
from icecache_local.host_pages import ABSENT
from icecache_local.planner import format_bytes
from icecache_local.reprefill import Reprefill
from icecache_local.sessions.resume import load
from icecache_local.sessions.snapshot import Snapshot
from icecache_local.texts import collapse, stdlib_texts

N_QUESTION = 32  # tokens
N_RIVAL_QUESTIONS = 8
N_WARM, N_DECODE = 32, 64
N_CHATS, N_TURNS, N_TURN = 3, 6, 128  # chats of each kind, their turns, tokens of a turn
UNREAD = 0, CacheConfig(ram_limit=1).most_unread  # exact, and the default with a limit
Row = tuple[str, float, str]


def drop(folder: Path) -> None:
    """Drop all files below a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Bench:
    """One model, one stored sequence.

    Parameters
    ----------
    llm : IceLlama
        That has read the sequence; it is saved.
    folder : Path
        Empty, on the disk that is measured.
    """

    def __init__(self, llm: IceLlama, folder: Path) -> None:
        self.llm, self.folder, self.n = llm, folder, llm.n_tokens
        start = time.perf_counter()
        llm.save_session(folder / "session")
        self.save_s = time.perf_counter() - start
        self.snapshot = next((folder / "session").glob("snapshot-*"))
        rng = np.random.default_rng(5)
        self.questions = rng.integers(0, 4096, (N_RIVAL_QUESTIONS, N_QUESTION)).tolist()

    def open(
        self, by_attention: bool = False, limit: int | None = None, unread: float = 0
    ) -> float:
        """Reopen the sequence; seconds."""
        llm = self.llm
        llm._kv.config = replace(llm._kv.config, unread=unread)
        llm.reset()
        drop(self.folder)
        start = time.perf_counter()
        with closing(Snapshot(self.snapshot)) as snapshot:
            load(llm, snapshot)
        seconds = time.perf_counter() - start
        budget = llm._kv.budget
        budget.limit = limit
        for tier in budget.tiers:
            tier.by_attention = by_attention
        return seconds

    def open_whole(self) -> None:
        """Reopen the sequence and bring all pages into memory."""
        self.open()
        self.llm._kv.budget.begin(0, reading=True)
        for tier in self.llm._kv.budget.tiers:
            tier.fetch_all()

    @property
    def read_bytes(self) -> int:
        """Bytes read from the pages files since the sequence was opened."""
        return self.llm.cache_stats.disk_read_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(tier.nbytes for tier in self.llm._kv.budget.tiers)

    def select(self, share: float | None) -> None:
        """Read questions with a share of the pages, or (None) with all."""
        self.llm._kv.reader.reprefill = None if share is None else Reprefill(share)

    def ask(self, i: int = 0) -> float:
        """Seconds from a question's tokens to the logits of the answer's first one."""
        start = time.perf_counter()
        self.llm.eval(self.questions[i])
        return time.perf_counter() - start

    def ms_per_token(self, n: int) -> float:
        """Continue greedily, token by token."""
        llm, token = self.llm, 1
        start = time.perf_counter()
        for _ in range(n):
            llm.eval([token])
            token = int(np.argmax(llm._ctx.get_logits_ith(-1)[: llm.n_vocab()]))
        return 1000 * (time.perf_counter() - start) / n


def reopening(bench: Bench, stock: llama_cpp.Llama) -> Iterator[Row]:
    """Reopen to first token, against llama.cpp's state file."""
    path = str(bench.folder / "state")
    tokens = (llama_cpp.llama_token * bench.n)()
    if not llama_cpp.llama_state_save_file(stock.ctx, path.encode(), tokens, bench.n):
        raise RuntimeError("llama.cpp could not save its state.")
    times: dict[object, list[float]] = {unread: [] for unread in (*UNREAD, "llama.cpp")}
    n_read = {}
    for _ in range(4):  # the first round warms up
        for unread in UNREAD:
            seconds = bench.open(unread=unread)
            times[unread].append(seconds + bench.ms_per_token(1) / 1000)
            n_read[unread] = bench.read_bytes
        drop(bench.folder)
        count = ctypes.c_size_t()
        start = time.perf_counter()
        if not llama_cpp.llama_state_load_file(
            stock.ctx, path.encode(), tokens, bench.n, ctypes.byref(count)
        ):
            raise RuntimeError("llama.cpp could not load its state.")
        stock.n_tokens = bench.n
        stock.eval([1])
        times["llama.cpp"].append(time.perf_counter() - start)
    *ours, theirs = (float(np.median(t[1:])) for t in times.values())
    yield "llama.cpp's state file to first token", theirs, "s"
    for unread, seconds in zip(UNREAD, ours, strict=True):
        note = f"s; {theirs / seconds:.1f}x, {format_bytes(n_read[unread])} of pages read"
        yield f"reopen to first token, ours, unread = {unread}", seconds, note


def questions(bench: Bench) -> Iterator[Row]:
    """Ask 32 tokens behind a reopened sequence, exact and selective."""
    exact = 0.0
    for share in (None, 0.5, 0.25, 0.1, 0.05):
        bench.select(share)
        times = []
        for _ in range(3):
            bench.open()
            before = bench.read_bytes
            times.append(bench.ask())
        seconds, n_read = float(np.median(times)), bench.read_bytes - before
        exact = exact or seconds
        name = "all pages (exact)" if share is None else f"{share:.0%} of the pages"
        yield f"question, {name}", seconds, f"s; {exact / seconds:.1f}x, {format_bytes(n_read)}"
    bench.select(None)


def amplification(bench: Bench) -> Iterator[Row]:
    """Bytes read per byte of the absent pages that 8 decode steps' candidates lie in."""
    wanted, fetch = [], DiskTier.fetch

    def note(tier: DiskTier, places: np.ndarray) -> None:
        for state, row in zip(tier.pages.state, places, strict=True):
            pages = np.unique(row[row >= 0] >> 4)
            wanted.append(np.count_nonzero(state[pages] & ABSENT) * tier.pages.page_bytes)
        fetch(tier, places)

    bench.open()
    before = bench.read_bytes
    DiskTier.fetch = note
    try:
        bench.ms_per_token(8)
    finally:
        DiskTier.fetch = fetch
    n_read = bench.read_bytes - before
    yield "read amplification, decoding", n_read / sum(wanted), f"{format_bytes(n_read)} read"


def rivals(bench: Bench, share: float = 0.25) -> Iterator[Row]:
    """Different questions in a row with memory for a quarter of the pages."""
    limit, results = None, {}
    for name in (
        *("selective, S = I x F", "selective, LRU", "whole prefix, LRU"),
        *("IMPRESS-like", "IMPRESS-like, as if heads agreed"),
    ):
        bench.select(share if name.startswith("selective") else None)
        bench.open(by_attention="LRU" not in name, limit=limit)
        if limit is None:
            limit = bench.nbytes // 4
            bench.llm._kv.budget.limit = limit
        kv, note = bench.llm._kv, ""
        reader = kv.reader
        if name.startswith("IMPRESS"):
            agree = -1.0 if name.endswith("agreed") else AGREE
            rival = Impress(bench.llm, bench.folder / f"impress{agree}", share, limit, agree)
            kv.budget.limit = None
            kv.reader = rival
        before = bench.read_bytes
        try:
            seconds = sum(map(bench.ask, range(N_RIVAL_QUESTIONS))) / N_RIVAL_QUESTIONS
        finally:
            kv.reader = reader
        n_read = bench.read_bytes - before
        n_read //= N_RIVAL_QUESTIONS
        if name.startswith("IMPRESS"):
            n_read = rival.read_bytes // N_RIVAL_QUESTIONS
            note = f", {rival.n_whole} of {rival.n_run} layers whole"
        results[name] = seconds
        times = seconds / results["selective, S = I x F"]
        note = f"s per question; {times:.1f}x ours, {format_bytes(n_read)} read{note}"
        yield f"{share:.0%}, memory for 25%: {name}", seconds, note
    bench.select(None)


def decoding(bench: Bench) -> Iterator[Row]:
    """Decode with memory for a quarter of the pages."""
    bench.open()
    bench.llm._kv.budget.begin(0, reading=True)
    for tier in bench.llm._kv.budget.tiers:
        tier.fetch_all()
    bench.ms_per_token(N_WARM)
    free = bench.ms_per_token(N_DECODE)
    yield "decode, all pages in memory", free, "ms per token"
    limit = bench.nbytes // 4
    for unread, by_attention in ((0, False), (UNREAD[1], False), (UNREAD[1], True)):
        bench.open(by_attention, limit, unread)
        bench.ms_per_token(N_WARM)
        before = bench.read_bytes
        ms = bench.ms_per_token(N_DECODE)
        n_read = (bench.read_bytes - before) / N_DECODE
        name = f"unread = {unread}, {'S = I x F' if by_attention else 'LRU'}"
        note = f"ms per token; {ms / free:.1f}x, {format_bytes(int(n_read))} read per token"
        yield f"decode, memory for 25%, {name}", ms, note


def saving(bench: Bench) -> Iterator[Row]:
    """Decode in turns, with and without a session that is saved after each."""
    llm = bench.llm
    turns: dict[bool, list[float]] = {False: [], True: []}
    saves = []
    for i in range(2 * N_CHATS):
        is_saved = i % 2 == 1
        bench.open_whole()
        if is_saved:
            llm.start_session(bench.folder / f"growing-{i}")
            llm.save_session(notes={})
        bench.ms_per_token(N_WARM)
        for _ in range(N_TURNS):
            start = time.perf_counter()
            bench.ms_per_token(N_TURN)
            turns[is_saved].append(time.perf_counter() - start)
            if is_saved:
                llm.save_session(notes={"turns": [["question", "answer"]]})
                saves.append(time.perf_counter() - start - turns[is_saved][-1])
        if is_saved:
            llm.close_session()
    without, turn, save = (1000 * float(np.median(t)) for t in (turns[False], turns[True], saves))
    yield f"turn of {N_TURN} tokens, no session", without, "ms"
    yield f"turn of {N_TURN} tokens, with a session", turn, "ms"
    yield "saving it", save, f"ms; {100 * save / without:.1f}% of the turn without"


PARTS = {
    "questions": questions,
    "amplification": amplification,
    "decoding": decoding,
    "rivals": rivals,
    "saving": saving,
}


def reference(
    tokens: int, folder: Path, threads: int, parts: list[str], cache: CacheConfig
) -> Iterator[Row]:
    """Yield the rows of the embedded model on a real text, with its answers."""
    path = str(embedded.model_path())
    options = {"n_ctx": tokens + 1024, "n_threads": threads, "n_threads_batch": threads}
    facts = draw_facts(Random(3), 16)
    with closing(IceLlama(path, cache=cache, verbose=False, **options)) as llm:
        text = fit_text(llm, 3, facts, tokens)
        read(llm, text[:2048], lambda *_: None)
        seconds = read(llm, text, lambda *_: None)
        yield "reading the text", seconds, f"s; {len(text)} tokens"
        bench = Bench(llm, folder)
        yield "saving all of it", bench.save_s, "s"
        with closing(llama_cpp.Llama(path, flash_attn=True, verbose=False, **options)) as stock:
            shape = llm._kv.shape_of(0)
            width = shape.n_kv_heads * shape.head_dim_k
            fill_stock(stock, bench.n, shape.n_layers, width, np.random.default_rng(0))
            rows = list(reopening(bench, stock))
        yield from rows
        yield "reading against reopening, unread = 0", seconds / rows[1][1], "x"
        unread = UNREAD[1]
        for name, share, options in (
            ("exact", None, {}),
            ("10%", 0.1, {}),
            (f"exact, memory for 25%, unread = {unread}", None, {"unread": unread}),
        ):
            bench.select(share)
            right, limit = 0, bench.nbytes // 4 if options else None
            for fact in facts:
                bench.open(limit=limit, **options)
                right += answer(llm, text, fact.name) == fact.code
            yield f"right answers of {len(facts)}, {name}", right, ""
        bench.select(None)
        bench.questions = [tokenize(llm, embedded.ask(embedded.question(f.name))) for f in facts]
        for part in parts:
            yield from PARTS[part](bench)


def qwen_slice(
    tokens: int, folder: Path, threads: int, layers: int, parts: list[str], cache: CacheConfig
) -> Iterator[Row]:
    """Yield the rows of random layers in Qwen3-0.6B's shape."""
    path, rng = str(qwen3_slice(layers, "q8_0")), np.random.default_rng(0)
    options = {"n_ctx": tokens + 1024, "n_threads": threads, "n_threads_batch": threads}
    with closing(IceLlama(path, cache=cache, verbose=False, **options)) as llm:
        fill_ice(llm, tokens, rng)
        llm.eval([1])
        bench = Bench(llm, folder)
        with closing(llama_cpp.Llama(path, flash_attn=True, verbose=False, **options)) as stock:
            width = QWEN3_06B.n_kv_heads * QWEN3_06B.head_dim
            fill_stock(stock, bench.n, layers, width, rng)
            yield from reopening(bench, stock)
        for part in parts:
            yield from PARTS[part](bench)


def other(
    path: str, tokens: int, folder: Path, threads: int, parts: list[str], cache: CacheConfig
) -> Iterator[Row]:
    """Yield the rows of a model on Python's documentation."""
    options = {"n_ctx": tokens + 1024, "n_threads": threads, "n_threads_batch": threads}
    with closing(IceLlama(path, cache=cache, verbose=False, **options)) as llm:
        text = tokenize(llm, collapse("\n".join(stdlib_texts(Random(5))))[: 12 * tokens])[:tokens]
        yield "reading the text", read(llm, text, lambda *_: None), f"s; {len(text)} tokens"
        bench = Bench(llm, folder)
        for part in parts:
            yield from PARTS[part](bench)


@click.command()
@click.option("--model", default="reference", help="reference, slice or a GGUF file.")
@click.option("--tokens", default=32768)
@click.option("--layers", default=4, help="Of the slice.")
@click.option("--threads", default=os.cpu_count())
@click.option("--part", "parts", multiple=True, type=click.Choice([*PARTS]), default=[*PARTS][:3])
@click.option("--candidates", default=CacheConfig.candidate_pages, help="candidate_pages.")
@click.option("--folder", default=str(OUT), help="Where the files lie: the disk to measure.")
def main(
    model: str,
    tokens: int,
    layers: int,
    threads: int,
    parts: list[str],
    candidates: int,
    folder: str,
) -> None:
    """Print the table and write it as JSON."""
    if model not in ("reference", "slice") and not Path(model).is_file():
        raise click.BadParameter(f"{model} is neither reference, slice nor a file.")
    Path(folder).mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="sessions-", dir=folder))
    rows, cache = [], CacheConfig(candidate_pages=candidates)
    try:
        rest = work, threads, parts, cache
        if model == "slice":
            made = qwen_slice(tokens, work, threads, layers, parts, cache)
        else:
            made = reference(tokens, *rest) if model == "reference" else other(model, tokens, *rest)
        for name, value, note in made:
            rows.append({"measure": name, "value": value, "note": note})
            print(f"{name:<52}{value:>10.4g}  {note}", flush=True)
    finally:
        shutil.rmtree(work)
    result = {"benchmark": "sessions", "model": model, "tokens": tokens, "rows": rows}
    (OUT / f"sessions_{Path(model).stem}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
