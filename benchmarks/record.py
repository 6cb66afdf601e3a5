"""Record keys and decode queries of the reference model on a long text, for benchmarks/index.py.

Run `python benchmarks/record.py`; it writes benchmarks/out/recorded.npz.
"""

from __future__ import annotations

from random import Random

import click
import numpy as np
from models import OUT

from icecache_local import CacheConfig, IceLlama, embedded
from icecache_local.demo import answer, read
from icecache_local.hidden_facts import draw_facts, fit_text
from icecache_local.layer_cache import LayerCache


class Recorder:
    """Collects the queries of every decode step while it is active."""

    def __init__(self) -> None:
        self.queries: dict[int, list[np.ndarray]] = {}

    def __enter__(self) -> Recorder:
        """Stand in front of `LayerCache.load`."""
        self._load = load = LayerCache.load

        def record(cache: LayerCache, q: np.ndarray, scale: float, real_from: int) -> None:
            self.queries.setdefault(cache.index.layer, []).append(q.copy())
            load(cache, q, scale, real_from)

        LayerCache.load = record
        return self

    def __exit__(self, *_: object) -> None:
        """Step aside."""
        LayerCache.load = self._load


@click.command()
@click.option("--tokens", default=32768, help="Length of the text.")
@click.option("--questions", default=16, help="Questions whose answers' queries are recorded.")
@click.option("--seed", default=0, help="Seed of the text and its facts.")
def main(tokens: int, questions: int, seed: int) -> None:
    """Write keys [L, G, n, D] (f16) and queries [L, G, steps, group, D] (f32) after RoPE."""
    # Every page is a candidate: the recorded steps are those of an exact selection.
    config = CacheConfig(candidate_pages=tokens)
    path = str(embedded.model_path())
    llm = IceLlama(path, n_ctx=tokens + 1024, cache=config, verbose=False)
    facts = draw_facts(Random(seed), questions)
    text = fit_text(llm, seed, facts, tokens)
    read(llm, text, lambda done, total: None)
    with Recorder() as recorder:
        for fact in facts:
            print(f"{fact.name}: {answer(llm, text, fact.name)} (expected {fact.code})")
    keys, queries = [], []
    for number, cache in llm._kv.layers.items():
        heads, group = cache.shape.n_kv_heads, cache.shape.group
        places = cache._places(0, len(text))
        k, _ = cache.pages.rows(np.arange(heads)[:, None], places)
        keys.append(k.view(np.float16).transpose(1, 0, 2))
        q = np.stack(recorder.queries[number])
        queries.append(q.reshape(len(q), heads, group, -1).transpose(1, 0, 2, 3))
    OUT.mkdir(exist_ok=True)
    target = OUT / "recorded.npz"
    np.savez(target, keys=np.stack(keys), queries=np.stack(queries))
    print(f"{target}: keys {np.shape(keys)}, queries {np.shape(queries)}")


if __name__ == "__main__":
    main()
