"""Layers that keep the tokens which one before them has chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import MAX_KLD_DECODE, assert_same_top, draw, feed, greedy, kld
from test_policy_llama import open_policy  # noqa: F401
from tiny_models import TinySpec, spec_of

from icecache_local import CacheConfig, IceLlama
from icecache_local.errors import ConfigError
from icecache_local.gguf_info import read_model_info
from icecache_local.planner import make_plan
from icecache_local.reuse import leaders

SPEC = TinySpec("qwen3", n_layers=7, d=64, n_heads=4, n_kv_heads=2, head_dim=32, dtype="f32")
N_CTX, N_BATCH = 2048, 64
SMALL = CacheConfig(budget=64, candidate_pages=8)


def follows(llm: IceLlama, reuse: int) -> list[tuple[int, int]]:
    """Check who follows whom in the slots; the pairs of layers that hold the same tokens."""
    caches = list(llm._kv.layers.values())
    held = [[set(row[row > 0]) for row in cache.slots.token_in] for cache in caches]

    def alike(a: int, b: int) -> bool:
        """Whether b holds what a does, but for a token that gave way to a's remainder."""
        return all(x <= y and len(y) <= len(x) + 1 for x, y in zip(held[a], held[b], strict=True))

    for place, leader in enumerate(leaders([len(rows) for rows in held], reuse)):
        if leader is not None:
            assert alike(leader, place)
            assert all(len(row) == caches[place].slots.n_slots for row in held[place])
    pairs = [(a, b) for a in range(len(held)) for b in range(a + 1, len(held))]
    return [pair for pair in pairs if alike(*pair)]


def test_the_first_layers_search_and_then_every_third() -> None:
    assert leaders([8] * 9, 2) == [None, None, None, 2, 2, None, 5, 5, None]
    assert leaders([8] * 6, 1) == [None, None, None, 2, None, 4]
    assert leaders([8] * 4, 99) == [None, None, None, 2]
    assert leaders([8, 8, 8, 4, 4, 8, 8], 3) == [None, None, None, None, 3, None, None]


@given(st.lists(st.sampled_from([1, 2, 8]), max_size=40))
def test_without_reuse_every_layer_searches(heads) -> None:
    assert leaders(heads, 0) == [None] * len(heads)


@given(st.lists(st.sampled_from([1, 2, 8]), max_size=40), st.integers(1, 5))
def test_whoever_is_followed_searches_and_fits(heads, reuse) -> None:
    who = leaders(heads, reuse)
    for place, leader in enumerate(who):
        if leader is not None:
            assert 2 <= leader < place <= leader + reuse or heads[:2] != heads[:1] * 2
            assert who[leader] is None and heads[leader] == heads[place]


@pytest.mark.parametrize("device", ["auto", "ggml"])
@pytest.mark.parametrize("reuse", [1, 2])
def test_followers_hold_their_leaders_tokens(reuse, device, tiny_model, open_ice, rng) -> None:
    config = replace(SMALL, reuse_layers=reuse, device=device)
    ice = open_ice(tiny_model(SPEC), N_CTX, N_BATCH, cache=config)
    ice.eval(draw(rng, 600))
    same = follows(ice, 0)
    assert (2, 3) in same  # the carriers' tokens: nothing has been chosen yet
    for cut in (None, None, 500, 400, None):
        if cut is not None:
            ice.n_tokens = cut
            ice.eval(draw(rng, 90))
        for _ in range(3):  # pages of the tail move to the index in between
            feed(ice, draw(rng, 11))
            same = follows(ice, reuse)
            assert (2, 3) in same and (0, 1) not in same and (1, 2) not in same
            ice._kv.check_integrity()


@pytest.mark.parametrize("arch", ["gemma3", "gemma4-shared", "gpt-oss", "lfm2", "deepseek2"])
def test_other_architectures(arch, tiny_model, open_ice, rng) -> None:
    """Sliding windows, shared cells, attention sinks, recurrent layers, V within K."""
    path = tiny_model(spec_of(arch, d=128, n_heads=4, n_kv_heads=2, head_dim=32, dtype="f32"))
    ice = open_ice(path, N_CTX, N_BATCH, cache=replace(SMALL, reuse_layers=3))
    ice.eval(draw(rng, 700))
    assert np.isfinite(feed(ice, draw(rng, 40))).all()
    follows(ice, 3)
    ice._kv.check_integrity()


def test_two_layers_behind_each_are_the_policy_of_the_paper(
    tiny_model,
    open_ice,
    open_policy,  # noqa: F811
    rng,
) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, 700), draw(rng, 40)
    policy = open_policy(path, SMALL, N_CTX)
    policy.set_policy("icecache-r")
    ours = open_ice(path, N_CTX, N_BATCH, cache=replace(SMALL, reuse_layers=2))
    rows = []
    for llm in (policy, ours):
        llm.eval(prompt)
        rows.append(feed(llm, tokens))
    assert kld(*rows).max() < 1e-6
    plain = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    plain.eval(prompt)
    assert kld(rows[0], feed(plain, tokens)).max() > 1e-6, "reuse changed nothing"


def test_a_budget_for_everything_decodes_like_stock(tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(SPEC), draw(rng, 300)
    stock = open_stock(path, N_CTX, N_BATCH)
    ice = open_ice(path, N_CTX, N_BATCH, cache=CacheConfig(budget=512, reuse_layers=2))
    for llm in (stock, ice):
        llm.eval(prompt)
    tokens, theirs = greedy(stock, 64)
    ice._kv.spill()
    ours = feed(ice, tokens)
    assert_same_top(theirs, ours)
    assert kld(theirs, ours).mean() < MAX_KLD_DECODE
    ice._kv.check_integrity()


def test_layers_search_for_themselves_while_pages_are_on_the_disk(
    tiny_model, open_ice, rng
) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, 1800), draw(rng, 20)
    limited = replace(SMALL, ram_limit=2 << 20, unread=0)
    rows = []
    for cache in (limited, replace(limited, reuse_layers=2)):
        ice = open_ice(path, N_CTX, N_BATCH, cache=cache)
        ice.eval(prompt)
        rows.append(feed(ice, tokens))
    np.testing.assert_array_equal(*rows)


def test_a_state_is_taken_over_whoever_searched_before(tiny_model, open_ice, rng) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, 500), draw(rng, 30)
    reusing = replace(SMALL, reuse_layers=2)
    before = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    before.eval(prompt)
    state = before.save_state()
    fresh = open_ice(path, N_CTX, N_BATCH, cache=reusing)
    fresh.eval(prompt)
    expected = feed(fresh, tokens)
    for _ in range(2):  # the second time over a sequence that is there
        fresh.load_state(state)
        assert kld(expected, feed(fresh, tokens)).max() < 1e-6
        fresh._kv.check_integrity()


def test_the_places_are_counted_and_planned(tiny_model, open_ice, rng) -> None:
    path, prompt, n_bytes, plans = tiny_model(SPEC), draw(rng, 900), [], []
    for reuse in (0, 2):
        cache = replace(SMALL, reuse_layers=reuse)
        ice = open_ice(path, N_CTX, N_BATCH, cache=cache)
        ice.eval(prompt)
        n_bytes.append(ice.cache_stats.index_bytes)
        plans.append(make_plan(read_model_info(path), cache, 900).index)
    followers = sum(leader is not None for leader in leaders([2] * 7, 2))
    assert n_bytes[1] - n_bytes[0] == plans[1] - plans[0] == 4 * 2 * 900 * followers


def test_what_was_looked_at_is_that_of_the_leader(tiny_model, rng) -> None:
    path = tiny_model(SPEC)
    options = dict(n_ctx=N_CTX, n_batch=N_BATCH, n_threads=1, n_threads_batch=1, verbose=False)
    ice = IceLlama(str(path), cache=replace(SMALL, reuse_layers=99), attribution=True, **options)
    ice.eval(draw(rng, 600))
    feed(ice, draw(rng, 3))
    seen = ice.looked_at()
    cache = ice._kv.layers[6]
    assert cache.chosen_by is ice._kv.layers[2].selector
    assert seen.sum() > 0 and (seen[cache.chosen_by.tokens] > 0).all()
    ice.close()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="reuse_layers is -1"):
        CacheConfig(reuse_layers=-1)
