"""Selective re-prefill reads what the new tokens attend to; with every page it is exact."""

import numpy as np
import pytest
from test_layer_cache import SHAPE, Sequence
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama
from icecache_local.disk_tier import DiskTier
from icecache_local.errors import ConfigError
from icecache_local.layer_cache import LayerCache
from icecache_local.page_scores import page_masses
from icecache_local.reprefill import Reprefill, leaves_of

SPEC = TinySpec("qwen3", n_layers=3, d=64, n_heads=4, n_kv_heads=2, head_dim=64, n_ctx_train=4096)
CONFIG = CacheConfig(budget=64, sink=16, window=16, candidate_pages=8)
N_CTX, N_BATCH, N_TOKENS = 3072, 128, 2000


@pytest.fixture
def layer() -> Sequence:
    """A layer of 2,000 random tokens with a tier."""
    sequence = Sequence(7)
    DiskTier(sequence.cache.pages, sequence.cache.first_leaf)
    for _ in range(28):
        sequence.append(64)
    return sequence


def test_masses_of_pages_add_up_and_point_at_the_key_that_is_asked_for(layer, rng):
    cache = layer.cache
    wanted = [300, 700, 1100]
    keys = layer.k[wanted].view(np.float16).astype(np.float32)
    q = 3 * np.repeat(keys, SHAPE.group, axis=1)
    leaves = leaves_of(cache)
    masses = page_masses(cache, leaves, q, 0.125)
    for g, mass in enumerate(masses):
        assert 0.9 * len(q) * SHAPE.group < mass.sum() <= len(q) * SHAPE.group * 1.0001
        ids = cache.pages.ids[g, leaves[g][0]]
        holding = [np.flatnonzero((ids == t + 1).any(axis=1))[0] for t in wanted]
        order = np.argsort(-mass)
        assert set(holding) <= set(order[:12].tolist())


def test_masses_are_those_of_the_formula(layer, rng):
    cache = layer.cache
    q = rng.standard_normal((70, SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
    leaves, index, dim, scale = leaves_of(cache), cache.index, SHAPE.head_dim_k, 0.3
    for g, mass in enumerate(page_masses(cache, leaves, q, scale)):
        pages = leaves[g][0]
        mean = index.centroids[g].reshape(-1, dim)[pages] * index.centroid_scales[g, pages, None]
        n = np.log(cache.pages.fill[g, pages])
        mine = scale * q[:, g * SHAPE.group : (g + 1) * SHAPE.group].reshape(-1, dim).astype(float)
        half = (mine**2 @ index.variance_shares[g])[:, None] * index.spreads[g, pages] / 2
        half = np.where(half > n, 2 * np.sqrt(n * half) - n, half)
        held = cache.pages.ids[g, : cache.first_leaf].ravel()
        keys = layer.k[held[held > 0] - 1, g].view(np.float16).astype(float)
        weights = np.exp(np.concatenate([mine @ mean.T + half + n, mine @ keys.T], axis=1))
        expected = (weights / weights.sum(axis=1, keepdims=True))[:, : len(pages)].sum(axis=0)
        np.testing.assert_allclose(mass, expected, rtol=1e-3)


def test_whole_buckets_are_chosen(layer, rng):
    cache = layer.cache
    q = rng.standard_normal((20, SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
    chosen = Reprefill(0.3).choose(0, cache, q, 0.125)
    for (pages, bucket), found in zip(leaves_of(cache), chosen, strict=True):
        part = np.bincount(bucket[np.isin(pages, found)], minlength=bucket.max() + 1)
        whole = part == np.bincount(bucket)
        assert np.count_nonzero(part) - np.count_nonzero(whole) <= 1, "more than one is cut"


def test_a_choice_has_the_share_that_was_asked_for(layer, rng):
    cache = layer.cache
    q = rng.standard_normal((20, SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
    chosen = Reprefill(0.1).choose(0, cache, q, 0.125)
    leaves = np.count_nonzero(cache.pages.fill[:, cache.first_leaf :], axis=1)
    assert chosen.shape == (SHAPE.n_kv_heads, np.ceil(0.1 * leaves.max()))
    for g, pages in enumerate(chosen):
        assert len(np.unique(pages)) == len(pages) and (pages >= cache.first_leaf).all()
        assert (cache.pages.fill[g, pages] > 0).all()


def test_a_layer_inside_a_period_reads_the_positions_chosen_at_its_start(layer, rng):
    cache = layer.cache
    q = rng.standard_normal((20, SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
    reprefill = Reprefill(0.1, period=2)
    first = reprefill.choose(0, cache, q, 0.125)
    again = reprefill.choose(1, cache, -q, 0.125)  # other queries: they are not looked at
    for g in range(SHAPE.n_kv_heads):
        ids = set(cache.pages.ids[:, first].ravel()) - {0}
        assert all(set(cache.pages.ids[g, page]) & ids for page in again[g])
    assert not np.array_equal(first, reprefill.choose(2, cache, -q, 0.125))


@pytest.fixture
def session(tiny_model, open_ice, tmp_path):
    """A session of 2,000 tokens, the question behind it, and its logits without closing."""
    llm = open_ice(tiny_model(SPEC), N_CTX, N_BATCH, cache=CONFIG)
    tokens = np.random.default_rng(1).integers(0, SPEC.n_vocab, N_TOKENS + 40).tolist()
    llm.eval(tokens[:N_TOKENS])
    llm.save_session(tmp_path / "s")
    llm.eval(tokens[N_TOKENS:])
    return tmp_path / "s", tokens[N_TOKENS:], _logits(llm)


def _logits(llm: IceLlama) -> np.ndarray:
    return np.ctypeslib.as_array(llm._ctx.get_logits(), (SPEC.n_vocab,)).copy()


def _opened(path, tiny_model, **cache) -> IceLlama:
    config = CacheConfig(budget=64, sink=16, window=16, candidate_pages=8, **cache)
    return IceLlama.open_session(
        path, model_path=str(tiny_model(SPEC)), cache=config, n_threads=1, verbose=False
    )


def test_opening_reads_no_page_of_the_index_and_an_exact_question_all(session, tiny_model):
    path, question, expected = session
    llm = _opened(path, tiny_model)
    assert llm.cache_stats.disk_read_bytes == 0, "the resident rows are stored by themselves"
    assert llm.cache_stats.disk_bytes > 0
    llm.eval(question)
    assert np.array_equal(_logits(llm), expected)
    assert llm.cache_stats.disk_bytes == 0
    llm.close()


@pytest.mark.parametrize("ram_limit", [None, 3 << 20])
def test_stored_rows_of_resident_tokens_are_used_as_long_as_they_are_right(
    session, tiny_model, ram_limit
):
    path, question, _ = session
    llm = _opened(path, tiny_model, unread=0.5, ram_limit=ram_limit)
    resident = [cache.slots.token_in.copy() for cache in llm._kv.layers.values()]
    for token in question[:3]:
        llm.eval([token])
    pages = sum(np.count_nonzero(held) for held in resident)
    tiers = llm._kv.budget.tiers
    assert llm.cache_stats.disk_read_bytes < pages * tiers[0].pages.page_bytes / 2
    llm.n_tokens = 900  # other tokens take the positions from here on
    for token in question:
        llm.eval([token])
    llm._kv.check_integrity()
    llm.close()


@pytest.mark.parametrize("ram_limit", [None, 3 << 20])
def test_every_page_chosen_is_exact_and_a_tenth_reads_a_tenth(
    session, tiny_model, ram_limit, monkeypatch
):
    path, question, expected = session
    llm = _opened(path, tiny_model, selective=0.1, ram_limit=ram_limit)
    llm._kv.reader.reprefill = Reprefill(1.0)
    llm.eval(question)
    assert np.array_equal(_logits(llm), expected)
    llm.close()
    llm = _opened(path, tiny_model, selective=0.1, ram_limit=ram_limit)
    before = {tier: tier.disk.read_bytes for tier in llm._kv.budget.tiers}
    shares, append = [], LayerCache.append

    def note(cache: LayerCache, cells: np.ndarray, finish: bool = True) -> None:
        tier = cache.pages.tier  # attention is done, insertion will read what it changes
        shares.append((tier.disk.read_bytes - before[tier]) / tier.nbytes)
        append(cache, cells, finish)

    monkeypatch.setattr(LayerCache, "append", note)
    llm.eval(question)
    assert not np.array_equal(_logits(llm), expected)
    assert len(shares) == 3 and 0 < min(shares) and max(shares) < 0.11  # no guess is read in vain
    llm.eval([1])
    llm._kv.check_integrity()
    llm.close()


def test_a_share_out_of_range_is_refused():
    for share in (0.0, 0.01, 0.9):
        with pytest.raises(ConfigError, match="between 0.05 and 0.5"):
            CacheConfig(selective=share)
