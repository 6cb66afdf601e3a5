"""IceLlama against stock llama.cpp on random models: how exact is each phase.

While everything fits in the cells the reference is a context with flash attention, and equality
is bit for bit. Beyond, the reference of prefill has flash attention off: on the CPU, flash
attention sums a ubatch of few tokens in f16, and so differs from itself by a KL divergence of up
to 8e-5 on these models when only the ubatch size changes. Most weights are f32 because f16 ones
make llama.cpp round activations too, which hides small errors in noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama
from icecache_local.config import PAGE

N_CTX = 2048
N_BATCH = 64
SMALL = CacheConfig(budget=64)
CELLS = SMALL.n_cells(N_BATCH)
MAX_KLD_PREFILL = 1e-5
MAX_KLD_DECODE = 1e-3  # mean over the decoded tokens
TIE = 0.01  # logits closer than this may swap places; their standard deviation is 3

ARCHS = [TinySpec(arch, dtype="f32") for arch in ("llama", "qwen2", "qwen3")]
SHAPES = [
    TinySpec("llama", n_heads=4, n_kv_heads=4, head_dim=32),
    TinySpec("qwen3", n_heads=8, n_kv_heads=1, head_dim=128),
    TinySpec("llama", n_heads=6, n_kv_heads=3, head_dim=80),
]


@pytest.fixture(params=["host", "ggml"], name="open_ice")
def open_ice_on_a_device(open_ice, request) -> Callable[..., IceLlama]:
    """A factory of icecache contexts whose cells are reached in one of the ways."""

    def opened(*args: object, cache: CacheConfig | None = None, **options: object) -> IceLlama:
        config = replace(cache or CacheConfig(), device=request.param)
        return open_ice(*args, cache=config, **options)

    return opened


def spec_id(spec: TinySpec) -> str:
    """Name a spec in test ids."""
    return f"{spec.arch}-{spec.n_heads}x{spec.n_kv_heads}x{spec.head_dim}-{spec.dtype}"


def boundaries(config: CacheConfig, n_batch: int) -> list[int]:
    """Lengths at, one below and one above every size at which something changes."""
    cells = config.n_cells(n_batch)
    marks = [PAGE, config.budget, n_batch, cells, cells + PAGE, cells + n_batch, 6 * n_batch]
    return sorted({mark + step for mark in marks for step in (-1, 0, 1)})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kld(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL divergence of softmax(q) from softmax(p), float64 [n], logits [n, vocab]."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def assert_same_top(p: np.ndarray, q: np.ndarray) -> None:
    """The likeliest token of q is that of p, up to ties; logits [n, vocab]."""
    chosen = np.take_along_axis(p, q.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (p.max(axis=1) - chosen).max() < TIE


def last_logits(llm: llama_cpp.Llama) -> np.ndarray:
    """Logits of the latest evaluated token, float32 [vocab]."""
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy()


def feed(llm: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    """Evaluate tokens one by one; their logits, float32 [n, vocab]."""
    rows = []
    for token in tokens:
        llm.eval([token])
        rows.append(last_logits(llm))
    return np.array(rows)


def greedy(llm: llama_cpp.Llama, n: int) -> tuple[list[int], np.ndarray]:
    """Decode `n` tokens greedily after what was evaluated; their ids, and the logits after each."""
    tokens, rows = [], [last_logits(llm)]
    for _ in range(n):
        tokens.append(int(rows[-1].argmax()))
        rows.append(feed(llm, tokens[-1:])[0])
    return tokens, np.array(rows[1:])


def draw(rng: np.random.Generator, n: int) -> list[int]:
    """Random text tokens."""
    return rng.integers(32, 127, n).tolist()


@pytest.mark.parametrize("n", boundaries(SMALL, N_BATCH))
@pytest.mark.parametrize("spec", ARCHS, ids=spec_id)
def test_prefill_of_all_tokens(spec, n, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(spec), draw(rng, n)
    stock = open_stock(path, N_CTX, N_BATCH, logits_all=True, flash_attn=n <= CELLS)
    ice = open_ice(path, N_CTX, N_BATCH, logits_all=True, cache=SMALL)
    for llm in (stock, ice):
        llm.eval(prompt)
    if n <= CELLS:
        np.testing.assert_array_equal(ice.scores[:n], stock.scores[:n])
    else:
        assert kld(stock.scores[:n], ice.scores[:n]).max() < MAX_KLD_PREFILL
        assert_same_top(stock.scores[:n], ice.scores[:n])
        assert ice._kv.sparse


@pytest.mark.parametrize("n", [*boundaries(SMALL, N_BATCH), 1100, 2047])
def test_prefill_of_the_last_token(n, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(ARCHS[2]), draw(rng, n)
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    for llm in (stock, ice):
        llm.eval(prompt)
    ours, theirs = last_logits(ice), last_logits(stock)
    assert kld(theirs[None], ours[None]).max() < MAX_KLD_PREFILL
    assert_same_top(theirs[None], ours[None])


@pytest.mark.parametrize("n", [511, 512, 513, 767, 768, 769, 1279, 1280, 1281, 1537])
def test_prefill_with_default_sizes(n, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(ARCHS[2]), draw(rng, n)
    fits = n <= CacheConfig().n_cells(512)
    stock, ice = open_stock(path, flash_attn=fits), open_ice(path)
    for llm in (stock, ice):
        llm.eval(prompt)
    ours, theirs = last_logits(ice), last_logits(stock)
    if fits:
        np.testing.assert_array_equal(ours, theirs)
    assert kld(theirs[None], ours[None]).max() < MAX_KLD_PREFILL
    assert_same_top(theirs[None], ours[None])


@pytest.mark.parametrize("spec", SHAPES, ids=spec_id)
def test_prefill_of_other_shapes(spec, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(spec), draw(rng, 700)
    stock = open_stock(path, N_CTX, N_BATCH, logits_all=True, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, logits_all=True, cache=SMALL, n_threads=2)
    for llm in (stock, ice):
        llm.eval(prompt)
    assert kld(stock.scores[:700], ice.scores[:700]).max() < MAX_KLD_PREFILL


def test_prompt_read_in_uneven_parts(tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(ARCHS[0]), draw(rng, 900)
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    stock.eval(prompt)
    for start, stop in [(0, 100), (100, 355), (355, 700), (700, 719), (719, 900)]:
        ice.eval(prompt[start:stop])
    assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < MAX_KLD_PREFILL


@pytest.mark.parametrize("spec", ARCHS, ids=spec_id)
def test_decode_equals_stock_while_all_fits(spec, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(spec), draw(rng, CELLS - 40)
    stock = open_stock(path, N_CTX, N_BATCH)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    for llm in (stock, ice):
        llm.eval(prompt)
    tokens, theirs = greedy(stock, 40)
    assert not ice._kv.sparse
    np.testing.assert_array_equal(feed(ice, tokens), theirs)


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("spec", ARCHS + SHAPES, ids=spec_id)
def test_full_budget_decodes_like_stock(
    spec, shuffled, tiny_model, open_ice, open_stock, rng
) -> None:
    path, prompt = tiny_model(spec), draw(rng, 300)
    stock = open_stock(path, N_CTX, N_BATCH)
    ice = open_ice(path, N_CTX, N_BATCH, cache=CacheConfig(budget=512))
    for llm in (stock, ice):
        llm.eval(prompt)
    tokens, theirs = greedy(stock, 64)
    ice._kv.spill()
    assert ice._kv.sparse
    rows = []
    for i in range(0, 64, 8):
        if shuffled:
            ice._kv.shuffle(rng)
        rows.append(feed(ice, tokens[i : i + 8]))
        ice._kv.check_integrity()
    ours = np.concatenate(rows)
    assert_same_top(theirs, ours)
    assert kld(theirs, ours).mean() < MAX_KLD_DECODE


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 100, CELLS - 1, CELLS, 300, 655, 690, 699])
def test_prefill_after_a_cut(cut, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt, suffix = tiny_model(ARCHS[2]), draw(rng, 700), draw(rng, 40)
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    ice.eval(prompt)
    feed(ice, draw(rng, 5))
    edited = prompt[:cut] + suffix
    for llm in (stock, ice):
        next(llm.generate(edited, temp=0.0))
    assert ice.n_tokens == stock.n_tokens == len(edited)
    assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < MAX_KLD_PREFILL
    ice._kv.check_integrity()


def test_many_cuts_and_extensions(tiny_model, open_ice, open_stock, rng) -> None:
    path = tiny_model(ARCHS[0])
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    text: list[int] = []
    for _ in range(12):
        text = text[: int(rng.integers(0, len(text) + 1))] + draw(rng, int(rng.integers(2, 500)))
        ours = [next(llm.generate(text, temp=0.0)) for llm in (ice, stock)]
        assert ours[0] == ours[1]
        assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < MAX_KLD_PREFILL
        feed(ice, draw(rng, int(rng.integers(1, 40))))
        ice._kv.check_integrity()


@pytest.mark.parametrize("spec", [ARCHS[2], SHAPES[2]], ids=spec_id)
def test_small_budget_keeps_its_slots_distinct(spec, tiny_model, open_ice, rng) -> None:
    ice = open_ice(tiny_model(spec), N_CTX, N_BATCH, cache=SMALL)
    ice.eval(draw(rng, 400))
    for _ in range(12):
        _, rows = greedy(ice, 25)
        assert np.isfinite(rows).all()
        ice._kv.check_integrity()
    assert ice.n_tokens == 700
