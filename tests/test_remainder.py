"""The row that stands for the tokens which were scored and not chosen."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exactness import draw, feed, kld
from tiny_models import TinySpec

from icecache_local import CacheConfig, embedded
from icecache_local.config import PAGE, ModelShape
from icecache_local.host_pages import HostPages
from icecache_local.remainder import DRAWS, MORE_DRAWS, _draw
from icecache_local.selection import Selector
from icecache_local.texts import collapse, stdlib_texts

SPEC = TinySpec("qwen3", n_layers=3, d=128, n_heads=4, n_kv_heads=2, head_dim=32, dtype="f32")
SMALL = CacheConfig(budget=64, candidate_pages=64)


def filled(rng: np.random.Generator, shape: ModelShape, n: int) -> tuple[HostPages, np.ndarray]:
    """Pages with `n` random tokens of each head, a page left over; K and V as float32."""
    n_pages = -(-n // PAGE)
    pages = HostPages(shape, n_pages + 1)
    rows = rng.standard_normal((shape.n_kv_heads, n_pages * PAGE, 2, shape.head_dim_k))
    rows = rows.astype(np.float16)
    k, v = (rows[:, :, i].reshape(shape.n_kv_heads, n_pages, -1) for i in (0, 1))
    pages.kv[:, :n_pages] = np.concatenate([k, v], axis=2).view(np.uint16)
    ids = np.arange(1, n_pages * PAGE + 1)
    pages.ids[:, :n_pages] = np.where(ids <= n, ids, 0).reshape(-1, PAGE)
    pages.fill[:, :n_pages] = np.count_nonzero(pages.ids[:, :n_pages], axis=2)
    pages.n_pages[:] = n_pages
    return pages, rows[:, :n].astype(np.float32)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8]), st.integers(20, 300), st.booleans())
@settings(deadline=None, max_examples=60)
def test_it_stands_for_all_others(seed, group, n, with_tail) -> None:
    rng = np.random.default_rng(seed)
    shape = ModelShape(1, 2 * group, 2, 32, 32)
    pages, rows = filled(rng, shape, n)
    rest_page = pages.capacity - 1
    n_slots = int(rng.integers(2, n))
    selector = Selector(pages, shape, n_slots, rest_page)
    q = rng.standard_normal((2 * group, 32)).astype(np.float32)
    tail = np.zeros(0, np.int32)
    places = np.arange(n, dtype=np.int32)
    if with_tail and n > 2 * PAGE:  # some of them forced, some with cells of their own
        tail = np.arange((n - PAGE) // PAGE, -(-n // PAGE), dtype=np.int32)
        places = np.arange(tail[0] * PAGE, dtype=np.int32)
    excluded = n if len(tail) == 0 else n - 2
    forced = excluded - 1 if len(tail) else n
    if excluded < n_slots:
        return
    selector.unread[:] = rng.choice([0, 0.7], 2)  # of what `places` get, others would get as well
    tokens, _ = selector.select(q, 0.3, np.tile(places, (2, 1)), tail, forced, excluded)
    assert (selector.rest == (rest_page * PAGE if excluded > n_slots else -1)).all()
    if excluded == n_slots:
        return
    kv = pages.kv[:, rest_page].view(np.float16).astype(np.float32)
    for g in range(2):
        free = tokens[g, :-1] < forced  # the least of those that compete comes last
        assert (selector.weights[g, -1] <= selector.weights[g, :-1][free] + 1e-7).all()
        logits = 0.3 * q[g * group : (g + 1) * group] @ rows[g, :, 0].T
        weights = np.exp(logits.astype(np.float64))
        left = np.setdiff1d(np.arange(excluded), tokens[g, :-1])
        shares = (weights / weights.sum(1, keepdims=True))[:, left]
        mass = weights[:, left].sum(1) + selector.unread[g] * weights[:, : len(places)].sum(1)
        share = (mass / weights.sum(1)).max()
        counts = drawn_counts(shares.sum(0), share, min(forced, excluded))
        values = rows[g, left, 1].astype(np.float64)
        mean = counts @ values / counts.sum()
        np.testing.assert_allclose(kv[g, PAGE * 32 : PAGE * 32 + 32], mean, atol=0.05)
        own = counts * shares / shares.sum(0)
        own = own @ values / own.sum(1, keepdims=True)
        agreement = 2 * own @ mean / ((own**2).sum(1) + mean @ mean)
        rest = np.maximum(agreement * mass, 1e-6 * weights.sum(1))
        found = 0.3 * q[g * group : (g + 1) * group] @ kv[g, :32]
        clear = agreement > 0.1  # below it, the logarithm magnifies one draw more or less
        np.testing.assert_allclose(found[clear], np.log(rest)[clear], atol=0.1)


def drawn_counts(weights: np.ndarray, share: float, n_open: int) -> np.ndarray:
    """How much each row counts; the plain version."""
    n = np.floor(DRAWS + MORE_DRAWS * share)
    if n_open <= n:
        return weights
    ends = np.cumsum(weights) / weights.sum() * n - 0.5
    return np.diff(np.ceil(np.maximum(ends, 0)), prepend=0)


def test_the_least_of_the_chosen_gives_way(rng) -> None:
    shape = ModelShape(1, 2, 1, 32, 32)
    pages, _ = filled(rng, shape, 200)
    with_rest = Selector(pages, shape, 40, pages.capacity - 1)
    without = Selector(pages, shape, 40)
    q = rng.standard_normal((2, 32)).astype(np.float32)
    everything = np.arange(200, dtype=np.int32)[None]
    none = np.zeros(0, np.int32)
    tokens = [s.select(q, 0.2, everything, none, 200, 200)[0].copy()
              for s in (with_rest, without)]  # fmt: skip
    assert set(tokens[0][0]) == set(tokens[1][0]) and (without.rest == -1).all()
    assert with_rest.weights[0].argmin() == 39


def test_queries_of_zero_have_no_such_row(rng) -> None:
    shape = ModelShape(1, 2, 1, 32, 32)
    pages, _ = filled(rng, shape, 100)
    selector = Selector(pages, shape, 40, pages.capacity - 1)
    q = np.zeros((2, 32), np.float32)
    selector.select(q, 1.0, np.arange(100, dtype=np.int32)[None], np.zeros(0, np.int32), 100, 100)
    assert (selector.rest == -1).all()


def test_tiny_queries_make_no_infinite_key(rng) -> None:
    shape = ModelShape(1, 2, 1, 32, 32)
    pages, _ = filled(rng, shape, 100)
    selector = Selector(pages, shape, 60, pages.capacity - 1)
    q = rng.standard_normal((2, 32)).astype(np.float32) * np.float32(1e-7)
    places = np.arange(100, dtype=np.int32)[None]
    selector.select(q, 1.0, places, np.zeros(0, np.int32), 100, 100)
    assert (selector.rest >= 0).all()
    assert np.isfinite(pages.kv[:, -1].view(np.float16)).all()


@given(st.integers(0, 2**32), st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_rows_are_drawn_as_often_as_they_weigh(seed, n) -> None:
    rng = np.random.default_rng(seed)
    weights = (10.0 ** rng.uniform(-6, 0, n) * (rng.random(n) < 0.7)).astype(np.float32)
    drawn, times = np.zeros(n, np.int32), np.zeros(n, np.float32)
    n_drawn = _draw(weights, np.int64(n), DRAWS, drawn, times)
    if not weights.any():
        assert n_drawn == 0
        return
    drawn, times = drawn[:n_drawn], times[:n_drawn]
    assert (np.diff(drawn) > 0).all()
    counts = np.zeros(n)
    counts[drawn] = times
    if n <= DRAWS:
        np.testing.assert_array_equal(counts, weights)
        return
    assert times.sum() == DRAWS and (times == times.astype(int)).all()
    np.testing.assert_array_less(np.abs(counts - weights / weights.sum() * DRAWS), 1.01)


def test_it_is_resident_whenever_something_was_left_out(tiny_model, open_ice, rng) -> None:
    ice = open_ice(tiny_model(SPEC), 2048, 64, cache=SMALL)
    ice.eval(draw(rng, 700))
    for _ in range(5):
        feed(ice, draw(rng, 3))
        for cache in ice._kv.layers.values():
            free = np.argwhere(cache.slots.token_in == 0)
            assert (free[:, 0] == np.arange(2)).all() and (cache.selector.rest >= 0).all()
            k, v, at = cache.device.rows(cache.slot_cells.astype(np.int64))
            row = cache.pages.kv[:, cache.selector.rest_page]
            for g, slot in free:
                np.testing.assert_array_equal(k[at[slot], g], row[g, :32])
                np.testing.assert_array_equal(v[at[slot], g], row[g, PAGE * 32 : PAGE * 32 + 32])


@pytest.mark.parametrize("device", ["auto", "ggml"])
def test_it_brings_decoding_closer_to_full_attention(device, open_ice, open_stock) -> None:
    """With a model that has learned, on text: random weights attend to nothing in particular."""
    path, text = embedded.model_path(), collapse(" ".join(stdlib_texts(Random(3))))[:20000]
    stock = open_stock(path, 2560, 64, flash_attn=False)
    tokens = stock.tokenize(text.encode())[:2100]
    prompt, tokens = tokens[:2000], tokens[2000:]
    stock.eval(prompt)
    theirs, found = feed(stock, tokens), []
    for remainder in (True, False):
        config = CacheConfig(budget=64, remainder=remainder, device=device)
        ice = open_ice(path, 2560, 64, cache=config)
        ice.eval(prompt)
        found.append(kld(theirs, feed(ice, tokens)).mean())
    assert found[0] < found[1] / 8, found


def test_it_is_the_same_after_a_state_or_a_cut(tiny_model, open_ice, rng) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, 600), draw(rng, 30)
    ice = open_ice(path, 2048, 64, cache=SMALL)
    ice.eval(prompt)
    state, expected = ice.save_state(), feed(ice, tokens)
    ice.load_state(state)
    np.testing.assert_array_equal(expected, feed(ice, tokens))
