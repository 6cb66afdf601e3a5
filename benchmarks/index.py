"""Time, recall and attention mass of the index, beside an exact scan and whole pages.

Run `python benchmarks/index.py`; one thread unless a row says otherwise. Recorded keys are
measured too where `python benchmarks/record.py` has written them. Recall and mass compare the
chosen tokens with the exact best ones; mass is summed over a group's queries.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the scan gets no more threads than we do

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numba
import numpy as np
from models import OUT

from icecache_local import CacheConfig
from icecache_local.config import PAGE, ModelShape
from icecache_local.host_pages import HostPages
from icecache_local.mdci import MDCIndex
from icecache_local.selection import Selector

NO_TAIL = np.zeros(0, np.int32)
NEVER = 1 << 30  # a position that no token has: none is forced or excluded
ROUNDS = 3  # passes over all queries; each query's shortest time counts


@dataclass
class Case:
    """Keys [G, n, D] (f32, exact in f16) and queries [m, H, D] of one layer."""

    name: str
    keys: np.ndarray
    queries: np.ndarray

    @property
    def scale(self) -> float:
        """Factor of q.k in the softmax."""
        return self.keys.shape[2] ** -0.5


@dataclass
class Row:
    """One line of the table."""

    data: str
    tokens: int
    method: str
    chosen: int
    us: float
    recall: float
    mass: float


class Layer:
    """The index over a case's keys, inserted `batch` tokens at a time."""

    def __init__(self, case: Case, batch: int, config: CacheConfig) -> None:
        heads, n, dim = case.keys.shape
        self.shape = ModelShape(1, case.queries.shape[1], heads, dim, dim)
        self.case, self.tail = case, batch // PAGE
        self.pages = HostPages(self.shape, self.tail + MDCIndex.pages_for(n))
        self.index = MDCIndex(self.pages, self.tail, config)
        self.seconds = np.zeros(0)

    def fill(self) -> None:
        """Insert all keys (V rows repeat K) and note the time of each insert."""
        self.index.clear()
        heads, n, dim = self.case.keys.shape
        seconds = []
        numbers = np.arange(self.tail, dtype=np.int32)
        for start in range(0, n, self.tail * PAGE):
            keys = self.case.keys[:, start : start + self.tail * PAGE]
            m = keys.shape[1] // PAGE
            rows = keys.astype(np.float16).view(np.uint16).reshape(heads, m, PAGE * dim)
            self.pages.kv[:, :m] = np.concatenate([rows, rows], axis=2)
            self.pages.ids[:, :m] = np.arange(start + 1, start + keys.shape[1] + 1).reshape(m, -1)
            self.pages.fill[:, :m] = PAGE
            begin = time.perf_counter()
            self.index.insert(numbers[:m])
            seconds.append(time.perf_counter() - begin)
        self.seconds = np.array(seconds)


def timed(ask: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """Median over the queries of the shortest of ROUNDS times, in us."""
    seconds = np.zeros((ROUNDS, len(queries)))
    for i in range(ROUNDS):
        for j, q in enumerate(queries):
            begin = time.perf_counter()
            ask(q)
            seconds[i, j] = time.perf_counter() - begin
    return float(np.median(seconds.min(axis=0)) * 1e6)


def masses(case: Case, q: np.ndarray) -> np.ndarray:
    """Softmax weights of all keys, summed over each group; [G, n]."""
    heads = len(case.keys)
    scores = np.einsum("grd,gnd->grn", q.reshape(heads, -1, q.shape[1]), case.keys) * case.scale
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return (weights / weights.sum(axis=2, keepdims=True)).sum(axis=1)


def compare(layer: Layer, slots: int) -> list[Row]:
    """Rows of the exact scan, of tokens chosen through the index and of its whole pages."""
    case, index = layer.case, layer.index
    heads, n, dim = case.keys.shape
    selector = Selector(layer.pages, layer.shape, slots)
    n_candidates = index.query(case.queries[0], case.scale).shape[1]
    every = Selector(layer.pages, layer.shape, min(n, n_candidates))

    def scan(q: np.ndarray) -> np.ndarray:
        scores = case.keys @ q.reshape(heads, -1, dim).transpose(0, 2, 1)
        best = scores.max(axis=2)
        return np.argpartition(best, n - slots, axis=1)[:, n - slots :]

    def tokens(q: np.ndarray) -> np.ndarray:
        found = index.query(q, case.scale)
        never = NO_TAIL, NEVER, NEVER
        return selector.select(q, case.scale, found, *never, log_mass=index.log_mass)[0]

    def whole_pages(q: np.ndarray) -> np.ndarray:
        """Return the tokens of the pages whose candidates weigh most."""
        _, places = every.select(q, case.scale, index.query(q, case.scale), NO_TAIL, NEVER, NEVER)
        chosen = []
        for g in range(heads):
            pages, number = np.unique(places[g] // PAGE, return_inverse=True)
            best = pages[np.argsort(-np.bincount(number, every.weights[g]))[: slots // PAGE]]
            chosen.append(layer.pages.ids[g, best].ravel() - 1)
        return np.stack(chosen)

    best, rows = [], []
    for q in case.queries:
        mass = masses(case, q)
        best.append((mass, np.argpartition(mass, n - slots, axis=1)[:, n - slots :]))
    for name, ask in (("exact scan", scan), ("tokens", tokens), ("whole pages", whole_pages)):
        recalls, shares = [], []
        for q, (mass, exact) in zip(case.queries, best, strict=True):
            for g, chosen in enumerate(ask(q)):
                chosen = chosen[chosen >= 0]
                recalls.append(len(np.intersect1d(chosen, exact[g])) / slots)
                shares.append(mass[g, chosen].sum() / mass[g, exact[g]].sum())
        us = timed(ask, case.queries)
        rows.append(Row(case.name, n, name, slots, us, np.mean(recalls), np.mean(shares)))
    return rows


def mixture(heads: int, group: int, n: int, m: int, rng: np.random.Generator, dim=128) -> Case:
    """Draw keys around 1000 centers with a common mean; queries are keys plus noise."""
    mean = rng.standard_normal((heads, 1, dim), np.float32)
    centers = rng.standard_normal((heads, 1000, dim), np.float32) + mean
    keys = np.empty((heads, n, dim), np.float32)
    for g in range(heads):
        noise = np.float32(0.5) * rng.standard_normal((n, dim), np.float32)
        keys[g] = (centers[g, rng.integers(0, 1000, n)] + noise).astype(np.float16)
    return Case("mixture", keys, near_keys(keys, group, m, rng))


def near_keys(keys: np.ndarray, group: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """Return queries [m, heads * group, D]: keys plus noise."""
    heads, n, dim = keys.shape
    head = np.repeat(np.arange(heads), group)
    picks = keys[head, rng.integers(0, n, (m, len(head)))]
    return picks + np.float32(0.5) * rng.standard_normal(picks.shape, np.float32)


def adversarial(name: str, n: int, m: int, rng: np.random.Generator, dim: int = 128) -> Case:
    """Keys that break careless clustering."""
    keys = rng.standard_normal((1, n, dim), np.float32)
    if name == "equal":
        keys[:] = keys[:, :1]
    elif name == "outliers":
        keys[:, ::97] *= 200
    elif name == "cluster":
        keys = keys[:, :1] + np.float32(0.01) * keys
    elif name == "sorted":
        keys = keys[:, np.argsort(keys[0, :, 0])]
    keys = keys.astype(np.float16).astype(np.float32)
    return Case(name, keys, near_keys(keys, 1, m, rng))


def recorded(path: Path, n_queries: int) -> list[Case]:
    """One case per layer, from `benchmarks/record.py`."""
    with np.load(path) as file:
        keys, queries = file["keys"].astype(np.float32), file["queries"]
    n = keys.shape[2] // PAGE * PAGE
    cases = []
    for layer, (k, q) in enumerate(zip(keys, queries, strict=True)):
        q = q.transpose(1, 0, 2, 3).reshape(q.shape[1], -1, q.shape[3])
        step = max(1, len(q) // n_queries)
        cases.append(Case(f"recorded, layer {layer}", k[:, :n], np.ascontiguousarray(q[::step])))
    return cases


def group_rules(case: Case, slots: int) -> dict[str, object]:
    """Mass that the exact best tokens keep under several ways to decide for a group."""
    kept: dict[str, list[float]] = {}
    for q in case.queries:
        scores = np.einsum("grd,gnd->grn", q.reshape(len(case.keys), -1, q.shape[1]), case.keys)
        scores *= case.scale
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        mass = weights.sum(axis=1)
        ranks = (-scores).argsort(axis=2).argsort(axis=2)
        rules = {
            "sum of weights": mass,
            "largest weight": weights.max(axis=1),
            "interleaved ranks": -ranks.min(axis=1),
            "largest score": scores.max(axis=1),
        }
        for name, values in rules.items():
            for g, best in enumerate(np.argpartition(-values, slots, axis=1)[:, :slots]):
                oracle = np.partition(mass[g], -slots)[-slots:].sum()
                kept.setdefault(name, []).append(mass[g, best].sum() / oracle)
    return {"data": case.name} | {name: float(np.mean(shares)) for name, shares in kept.items()}


def growth(n: int, m: int, rng: np.random.Generator) -> dict[str, float]:
    """Cost of building, inserting and storing at `n` tokens; the insert times are of one run."""
    case, config = mixture(1, 1, n, m, rng), CacheConfig()
    once = Layer(case, n, config)
    once.fill()
    build = []
    for _ in range(ROUNDS):
        once.fill()
        build.append(once.seconds[0])
    runs = []
    for _ in range(ROUNDS):
        layer = Layer(case, PAGE, config)
        layer.fill()
        runs.append(layer.seconds)
    inserts = np.min(runs, axis=0)  # the same work in every run: noise only adds
    leaves = np.count_nonzero(layer.pages.fill[0, layer.tail :])
    return {
        "tokens": n,
        "build_us_per_key": min(build) / n * 1e6,
        "insert_us_per_token": inserts.sum() / n * 1e6,
        "insert_max_ms": inserts.max() * 1e3,
        "index_bytes_per_k_byte": layer.index.nbytes / (n * 2 * case.keys.shape[2]),
        "partial_pages_share": 1 - n / PAGE / leaves,
    }


def step(n: int, threads: int, m: int, rng: np.random.Generator) -> dict[str, float]:
    """One decode step's selection for 8 KV heads with 2 queries each."""
    case = mixture(8, 2, n, m, rng)
    layer = Layer(case, n, CacheConfig())
    layer.fill()
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    row = compare(layer, 192)[1]
    numba.set_num_threads(before)
    return {"tokens": n, "threads": threads, "ms": row.us / 1e3, "mass": row.mass}


def print_dicts(rows: list[dict[str, object]]) -> None:
    """Print dictionaries of the same keys as a table."""
    print("\n" + "  ".join(f"{key:>8}" for key in rows[0]))
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("  ".join(f"{c:>{max(8, len(key))}}" for c, key in zip(cells, row, strict=True)))


@click.command()
@click.option("--tokens", default=131072, help="Keys of the largest synthetic case.")
@click.option("--million", is_flag=True, help="Also search 1,048,576 keys (2 GiB).")
@click.option("--queries", default=60, help="Queries per case.")
@click.option("--seed", default=0)
@click.option("--recorded", "record", default=OUT / "recorded.npz", type=Path)
@click.option("--json", "path", default=OUT / "index.json", type=Path)
@click.option("--candidate-pages", default=CacheConfig.candidate_pages, help="Pages compared.")
def main(
    tokens: int,
    million: bool,
    queries: int,
    seed: int,
    record: Path,
    path: Path,
    candidate_pages: int,
) -> None:
    """Print the tables and write them as JSON."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    rng = np.random.default_rng(seed)
    rows: list[Row] = []

    def add(case: Case, slots: int) -> None:
        config = CacheConfig(candidate_pages=candidate_pages)
        layer = Layer(case, min(512, case.keys.shape[1]), config)
        layer.fill()
        for row in compare(layer, slots):
            rows.append(row)
            print(
                f"{row.data:20} {row.tokens:8} {row.method:12} {row.chosen:6} {row.us:10.1f} "
                f"{row.recall:7.3f} {row.mass:6.3f}"
            )

    print(f"{'data':20} {'tokens':>8} {'method':12} {'chosen':>6} {'us':>10} recall   mass")
    for n in (tokens // 4, tokens) + ((1 << 20,) if million else ()):
        add(mixture(1, 1, n, queries, rng), 256)
    for name in ("equal", "outliers", "cluster", "sorted"):
        add(adversarial(name, tokens // 4, queries, rng), 256)
    rules = []
    if record.exists():
        for case in recorded(record, queries):
            for slots in (256, 64):
                add(case, slots)
            rules.append(group_rules(case, 256))
        print_dicts(rules)
    costs = [growth(tokens, queries, rng)]
    print_dicts(costs)
    steps = [step(n, threads, queries, rng) for n in (tokens // 8, tokens // 4, tokens)]
    print_dicts(steps)
    path.parent.mkdir(exist_ok=True)
    result = {"rows": [asdict(row) for row in rows], "rules": rules, "costs": costs, "steps": steps}
    path.write_text(json.dumps(result, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
