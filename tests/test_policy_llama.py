"""PolicyLlama: full attention is exact, and policies differ only in what they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np
import oracles
import pytest
from test_exactness import MAX_KLD_DECODE, MAX_KLD_PREFILL, draw, feed, greedy, kld, last_logits
from tiny_models import TinySpec, spec_of

from icecache_local import CacheConfig
from icecache_local.errors import ConfigError
from icecache_local.policies import POLICIES
from icecache_local.policies.llama import PolicyLlama

SPEC = TinySpec("qwen3", dtype="f32")
CONFIG = CacheConfig(budget=128)
N_BATCH = 64
N_PROMPT = 700
SELECTING = [name for name in POLICIES if name != "full"]


@pytest.fixture
def open_policy() -> Iterator[Callable[..., PolicyLlama]]:
    """A factory of contexts under a policy, closed at the end of the test."""
    with ExitStack() as stack:

        def opened(path: Path, cache: CacheConfig = CONFIG, n_ctx: int = 1024) -> PolicyLlama:
            llm = PolicyLlama(
                str(path),
                n_ctx=n_ctx,
                n_batch=N_BATCH,
                cache=cache,
                n_threads=1,
                n_threads_batch=1,
                verbose=False,
            )
            return stack.enter_context(closing(llm))

        yield opened


def answer(llm: PolicyLlama, prompt: list[int], n: int) -> list[int]:
    """Greedy continuation of a prompt."""
    return list(islice(llm.generate(prompt, temp=0.0), n))


def teacher_forced(llm: PolicyLlama, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """Logits after each of `tokens` behind a prompt."""
    next(llm.generate(prompt, temp=0.0))
    return feed(llm, tokens)


def test_full_equals_stock_while_all_fits(tiny_model, open_policy, open_stock, rng) -> None:
    path, prompt = tiny_model(SPEC), draw(rng, 150)
    stock, llm = open_stock(path, n_batch=N_BATCH), open_policy(path)
    llm.set_policy("full")
    for each in (stock, llm):
        each.eval(prompt)
    tokens, theirs = greedy(stock, 20)
    np.testing.assert_array_equal(feed(llm, tokens), theirs)
    assert not llm._kv.sparse


def test_full_equals_stock_beyond_the_cells(tiny_model, open_policy, open_stock, rng) -> None:
    path, prompt = tiny_model(SPEC), draw(rng, N_PROMPT)
    stock, llm = open_stock(path, n_batch=N_BATCH, flash_attn=False), open_policy(path)
    llm.set_policy("full")
    for each in (stock, llm):
        each.eval(prompt)
    tokens, theirs = greedy(stock, 40)
    assert kld(theirs, feed(llm, tokens)).max() < MAX_KLD_PREFILL
    assert llm._kv.sparse and (llm.kept_mass() == 1).all()


@pytest.mark.parametrize("name", SELECTING)
def test_keeping_everything_equals_full(name, tiny_model, open_policy, open_stock, rng) -> None:
    path, prompt = tiny_model(SPEC), draw(rng, 300)
    stock = open_stock(path, n_batch=N_BATCH)
    llm = open_policy(path, CacheConfig(budget=512))
    llm.set_policy(name)
    for each in (stock, llm):
        each.eval(prompt)
    tokens, theirs = greedy(stock, 40)
    llm._kv.spill()
    ours = feed(llm, tokens)
    llm._kv.check_integrity()
    assert kld(theirs, ours).mean() < MAX_KLD_DECODE
    np.testing.assert_allclose(llm.kept_mass(), 1, rtol=1e-5)


@pytest.mark.parametrize("arch", ["gemma3", "gemma4-shared", "gpt-oss", "lfm2", "deepseek2"])
def test_other_architectures(arch, tiny_model, open_policy, open_stock, rng) -> None:
    """Sliding windows, shared cells, attention sinks, recurrent layers, V within K."""
    path = tiny_model(spec_of(arch, d=128, n_heads=4, n_kv_heads=2, head_dim=32, dtype="f32"))
    prompt, tokens = draw(rng, 500), draw(rng, 20)
    stock, flash = (open_stock(path, n_batch=N_BATCH, flash_attn=on) for on in (False, True))
    llm = open_policy(path)
    llm.set_policy("full")
    theirs, own, ours = (teacher_forced(each, prompt, tokens) for each in (stock, flash, llm))
    # Sliding layers stay llama.cpp's, whose flash attention sums single tokens in f16.
    assert kld(theirs, ours).mean() < max(MAX_KLD_PREFILL, 1.5 * kld(theirs, own).mean())
    for name in ("quest", "omnikv", "icecache-r"):
        llm.set_policy(name, 64)
        assert np.isfinite(teacher_forced(llm, prompt, tokens)).all()
        llm._kv.check_integrity()
        assert (llm.kept_mass() > 0).all() and (llm.kept_mass() < 1).all()


@pytest.mark.parametrize("name", SELECTING)
def test_every_policy_fills_its_slots(name, tiny_model, open_policy, rng) -> None:
    llm = open_policy(tiny_model(SPEC))
    llm.set_policy(name, budget=64)
    rows = teacher_forced(llm, draw(rng, N_PROMPT), draw(rng, 70))
    llm._kv.check_integrity()
    assert np.isfinite(rows).all()
    for cache in llm._kv.layers.values():
        n_free = np.count_nonzero(cache.slots.token_in == 0, axis=1)
        np.testing.assert_array_equal(n_free, cache.selector.rest >= 0)
        assert POLICIES[name].remainder or not n_free.any()


def test_icecache_is_the_products_own_path(tiny_model, open_policy, open_ice, rng) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, N_PROMPT), draw(rng, 60)
    ice = open_ice(path, 1024, N_BATCH, cache=CONFIG)
    np.testing.assert_array_equal(
        teacher_forced(open_policy(path), prompt, tokens), teacher_forced(ice, prompt, tokens)
    )


def test_recorded_mass_is_that_of_the_resident_tokens(tiny_model, open_policy, rng) -> None:
    llm = open_policy(tiny_model(SPEC))
    next(llm.generate(draw(rng, N_PROMPT), temp=0.0))
    llm.set_policy("quest")
    seen = []
    choose = type(llm._kv.layers[0]).choose
    cache = llm._kv.layers[0]

    def spy(q, scale, real_from):
        tokens, places = choose(cache, q, scale, real_from)
        seen.append((q.copy(), scale, tokens.copy(), real_from))
        return tokens, places

    cache.choose = spy
    feed(llm, draw(rng, 1))
    (q, scale, tokens, real_from), n = seen[0], cache.n_tokens
    k, _ = cache.pages.rows(np.arange(len(tokens))[:, None], cache._places(0, n))
    keys = k.view(np.float16).transpose(1, 0, 2)
    expected = []
    for h, query in enumerate(q):
        g = h * len(keys) // len(q)
        mass = oracles.attention_mass(query[None], keys[g], scale)
        resident = {*range(CONFIG.sink), *tokens[g].tolist(), *range(real_from, n)}
        expected.append(mass[sorted(resident)].sum())
    np.testing.assert_allclose(llm.kept_mass()[0], expected, rtol=1e-4)


def test_exact_top_k_keeps_the_most_mass(tiny_model, open_policy, rng) -> None:
    llm = open_policy(tiny_model(SPEC))
    prompt, tokens, kept = draw(rng, N_PROMPT), draw(rng, 1), {}
    for name in SELECTING:
        llm.set_policy(name)
        teacher_forced(llm, prompt, tokens)
        kept[name] = llm.kept_mass()[0].sum()  # later layers have other queries
    assert kept["topk"] > 0
    assert all(kept["topk"] >= mass - 1e-5 for mass in kept.values())


def test_prompt_is_read_once_for_all_policies(tiny_model, open_policy, rng) -> None:
    llm, prompt = open_policy(tiny_model(SPEC)), draw(rng, N_PROMPT)
    answer(llm, prompt, 5)
    n_read = llm.cache_stats.prefill_tokens
    assert n_read == N_PROMPT
    for budget in (128, 96, 64):
        for name in ("full", "topk", "snapkv"):
            llm.set_policy(name, budget)
            answer(llm, prompt, 5)
            llm._kv.check_integrity()
            assert llm.cache_stats.resident_tokens == budget
    assert llm.cache_stats.prefill_tokens <= n_read + 9 * 5  # the prompt's last token, "full"
    llm.set_policy("topk", 128)
    answer(llm, prompt, 5)
    assert llm.cache_stats.prefill_tokens >= n_read + N_PROMPT


@pytest.mark.parametrize("name", ["topk", "snapkv", "quest", "pqcache"])
def test_a_smaller_budget_is_as_if_read_under_it(name, tiny_model, open_policy, rng) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, N_PROMPT), draw(rng, 30)
    shrunk, fresh = open_policy(path), open_policy(path)
    shrunk.set_policy("topk")
    answer(shrunk, prompt, 40)
    for llm in (shrunk, fresh):
        llm.set_policy(name, 64)
    ours, theirs = teacher_forced(shrunk, prompt, tokens), teacher_forced(fresh, prompt, tokens)
    shrunk._kv.check_integrity()
    assert kld(theirs, ours).mean() < MAX_KLD_DECODE
    np.testing.assert_allclose(shrunk.kept_mass(), fresh.kept_mass(), rtol=1e-2)


def test_index_is_built_anew_for_a_smaller_budget(tiny_model, open_policy, rng) -> None:
    path, prompt, tokens = tiny_model(SPEC), draw(rng, N_PROMPT), draw(rng, 30)
    shrunk, fresh = open_policy(path), open_policy(path)
    answer(shrunk, prompt, 40)
    masses = []
    for llm, name in ((shrunk, "icecache"), (fresh, "icecache"), (fresh, "topk")):
        llm.set_policy(name, 64)
        teacher_forced(llm, prompt, tokens)
        llm._kv.check_integrity()
        masses.append(llm.kept_mass().mean())
    # Trees of different histories propose slightly different tokens.
    assert masses[0] == pytest.approx(masses[1], rel=1e-2)
    assert masses[0] == pytest.approx(masses[2], rel=5e-2)


def test_question_can_be_decoded_with_the_selection(tiny_model, open_policy, rng) -> None:
    llm, prompt = open_policy(tiny_model(SPEC)), draw(rng, N_PROMPT)
    other = open_policy(tiny_model(SPEC))
    other.set_policy("streaming-llm")
    theirs = teacher_forced(other, prompt[:-10], prompt[-10:])[-1]
    for name in ("topk", "streaming-llm"):
        llm.set_policy(name, n_decoded=10)
        next(llm.generate(prompt, temp=0.0))
        assert llm._kv._n_steps[0] == 10
        assert np.array_equal(last_logits(llm), theirs) == (name == "streaming-llm")


def test_nothing_is_kept_before_there_is_a_choice(tiny_model, open_policy, rng) -> None:
    llm = open_policy(tiny_model(SPEC))
    assert llm.kept_mass().shape == (SPEC.n_layers, SPEC.n_heads)
    answer(llm, draw(rng, 100), 10)
    assert np.isnan(llm.kept_mass()).all()


def test_bad_settings_are_refused(tiny_model, open_policy) -> None:
    with pytest.raises(ConfigError, match="leave it out here"):
        PolicyLlama(str(tiny_model(SPEC)), attribution=True)
    with pytest.raises(ConfigError, match="leave out ram_limit"):
        PolicyLlama(str(tiny_model(SPEC)), cache=CacheConfig(ram_limit=1 << 30))
    llm = open_policy(tiny_model(SPEC))
    with pytest.raises(ConfigError, match="no policy 'best'; choose from full, topk"):
        llm.set_policy("best")
    with pytest.raises(ConfigError, match="budget is 256, but the model was loaded for 128"):
        llm.set_policy("topk", 256)
    with pytest.raises(ConfigError, match="n_decoded is -1"):
        llm.set_policy("topk", n_decoded=-1)
    assert llm.cache_config == CONFIG
