"""Exact attention over the host tier against a dense float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecache_local._native import ffi
from oracles import dense_attention

from icecache_local.attention import Attention
from icecache_local.config import PAGE, ModelShape
from icecache_local.errors import UnsupportedModelError
from icecache_local.host_pages import HostPages

TOLERANCE = 1e-5  # of the largest output; sums are float32
NAN = 0x7E00  # f16 bits; lies wherever nothing may be read
DIMS = (8, 16, 24, 40, 64, 72, 128)


@dataclass
class Problem:
    """One layer event: K and V of all tokens, and where they lie."""

    q: np.ndarray  # float32 [T, H, Dk]
    k: np.ndarray  # float16 [G, n + T, Dk]
    v: np.ndarray  # float16 [G, n + T, Dv]
    scale: float = 1.0
    softcap: float = 0.0
    sinks: np.ndarray | None = None  # float32 [H]
    sparse_pages: bool = True  # partly filled and empty pages, else full ones
    heads_first: bool = False  # q lies as [H, T, Dk]

    def dense(self):
        return dense_attention(self.q, self.k, self.v, self.scale, self.softcap, self.sinks)

    def run(self, n_threads=1, seed=0, attention=None):
        """What the kernel, or another attention, writes; float32 [T, H, Dv]."""
        rng = np.random.default_rng(seed)
        (n_new, n_heads, dk), (g, n, dv) = self.q.shape, self.v.shape
        n_past = n - n_new
        pages = self._host_pages(ModelShape(1, n_heads, g, dk, dv), n_past, rng)
        n_cells = n_new + 5
        cells = rng.permutation(n_cells)[:n_new].astype(np.int64)
        k_cells = np.full((n_cells, g, dk), NAN, np.uint16)
        v_cells = np.full((n_cells, g, dv), NAN, np.uint16)
        k_cells[cells] = self.k[:, n_past:].view(np.uint16).transpose(1, 0, 2)
        v_cells[cells] = self.v[:, n_past:].view(np.uint16).transpose(1, 0, 2)
        q = self.q
        if self.heads_first:
            q = np.ascontiguousarray(q.transpose(1, 0, 2)).transpose(1, 0, 2)
        out = np.full((n_new, n_heads, dv), np.nan, np.float32)
        layer = ffi.new("ice_layer *")
        layer.n_tokens, layer.n_heads, layer.n_kv_heads = n_new, n_heads, g
        layer.dk, layer.dv = dk, dv
        layer.scale, layer.softcap = self.scale, self.softcap
        layer.q = ffi.cast("float *", q.ctypes.data)
        layer.q_token, layer.q_head, _ = q.strides
        layer.out = ffi.cast("float *", out.ctypes.data)
        layer.out_token, layer.out_head, _ = out.strides
        layer.k_cells = ffi.cast("void *", k_cells.ctypes.data)
        layer.v_cells = ffi.cast("void *", v_cells.ctypes.data)
        layer.k_cell, layer.k_head, _ = k_cells.strides
        layer.v_cell, layer.v_head, _ = v_cells.strides
        if self.sinks is not None:
            layer.sinks = ffi.cast("float *", self.sinks.ctypes.data)
        (attention or Attention(n_threads)).run(layer, pages, cells)
        return out

    def _host_pages(self, shape, n_past, rng):
        """Past tokens in random order, each head's pages filled in its own way."""
        fills = [_fills(n_past, self.sparse_pages, rng) for _ in range(shape.n_kv_heads)]
        pages = HostPages(shape, max(map(len, fills)) + 1)
        pages.kv[:] = NAN
        dk, dv = shape.head_dim_k, shape.head_dim_v
        for g, fill in enumerate(fills):
            order = rng.permutation(n_past)
            k, v = self.k.view(np.uint16)[g, order], self.v.view(np.uint16)[g, order]
            pages.n_pages[g] = len(fill)
            first = 0
            for page, rows in enumerate(fill):
                here = slice(first, first + rows)
                pages.fill[g, page] = rows
                pages.kv[g, page, : rows * dk] = k[here].ravel()
                pages.kv[g, page, PAGE * dk : PAGE * dk + rows * dv] = v[here].ravel()
                first += rows
        return pages


def _fills(n, sparse, rng):
    """Rows of each page, n in all."""
    fills = []
    while sum(fills) < n:
        rows = int(rng.integers(0, PAGE + 1)) if sparse else PAGE
        fills.append(min(rows, n - sum(fills)))
    return fills + [0] * (2 if sparse else 0)


def make(n_new, n_past, g, group, dk, dv, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return Problem(
        q=rng.standard_normal((n_new, g * group, dk)).astype(np.float32),
        k=rng.standard_normal((g, n_past + n_new, dk)).astype(np.float16),
        v=rng.standard_normal((g, n_past + n_new, dv)).astype(np.float16),
        **{"scale": dk**-0.5} | settings,
    )


def assert_exact(problem, **how):
    expected = problem.dense()
    error = np.abs(problem.run(**how) - expected).max()
    assert error <= TOLERANCE * np.abs(expected).max()


@given(
    n_new=st.integers(1, 70),
    n_past=st.integers(0, 200),
    g=st.integers(1, 3),
    group=st.integers(1, 9),
    dk=st.sampled_from(DIMS),
    dv=st.sampled_from(DIMS),
    softcap=st.sampled_from([0.0, 0.5, 30.0]),
    with_sinks=st.booleans(),
    sparse_pages=st.booleans(),
    heads_first=st.booleans(),
    n_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_equals_dense_attention(
    n_new, n_past, g, group, dk, dv, softcap, with_sinks, sparse_pages, heads_first, n_threads, seed
):
    sinks = np.random.default_rng(seed).normal(0, 3, g * group).astype(np.float32)
    problem = make(
        *(n_new, n_past, g, group, dk, dv, seed),
        softcap=softcap,
        sinks=sinks if with_sinks else None,
        sparse_pages=sparse_pages,
        heads_first=heads_first,
    )
    assert_exact(problem, n_threads=n_threads, seed=seed)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 9, 16, 17, 71])
@pytest.mark.parametrize("n_new", [1, 2])
def test_few_queries(n_new, group):
    assert_exact(make(n_new, 333, 2, group, 64, 64))


@pytest.mark.parametrize(("dk", "dv"), [(576, 512), (192, 128), (8, 576), (576, 8), (256, 256)])
@pytest.mark.parametrize("n_new", [1, 3, 40])
def test_wide_heads(n_new, dk, dv):
    assert_exact(make(n_new, 150, 2, 3, dk, dv), n_threads=2)


@pytest.mark.parametrize(("n_new", "n_past"), [(512, 0), (512, 1000), (257, 64), (300, 63)])
def test_large_ubatch(n_new, n_past):
    assert_exact(make(n_new, n_past, 2, 2, 64, 64), n_threads=2)


@pytest.mark.parametrize("n_new", [1, 20])
def test_many_earlier_tokens(n_new):
    assert_exact(make(n_new, 20_000, 1, 2, 64, 64, sparse_pages=False), n_threads=2)


@pytest.mark.parametrize("n_new", [1, 64])
@pytest.mark.parametrize("logit", [1e3, 1e6, -1e6])
def test_equal_huge_logits_give_the_mean(n_new, logit):
    problem = make(n_new, 100, 1, 2, 16, 16)
    problem.q[:], problem.k[:], problem.scale = 1, 1, logit / 16
    assert_exact(problem)


@pytest.mark.parametrize("n_new", [1, 64])
def test_winner_takes_all(n_new):
    """Each logit is far above the one before: outputs are the latest token's V, bit for bit."""
    problem = make(n_new, 100, 1, 2, 16, 16, scale=10.0)
    problem.q[:] = 1
    problem.k[:] = np.arange(100 + n_new)[:, None]
    latest = problem.v[0, 100:].astype(np.float32)
    assert np.array_equal(problem.run(), np.repeat(latest[:, None], 2, axis=1))


def test_a_huge_sink_silences_the_head():
    sinks = np.array([1e6, -1e6], np.float32)
    problem = make(30, 100, 1, 2, 16, 16, sinks=sinks)
    out = problem.run()
    assert np.abs(out[:, 0]).max() < 1e-30
    problem.sinks = None
    assert np.allclose(out[:, 1], problem.run()[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_new", [2, 48])
def test_later_tokens_are_not_seen(n_new):
    problem = make(n_new, 70, 2, 2, 32, 32)
    before = problem.run()
    problem.k[:, -1], problem.v[:, -1] = 100, 100
    after = problem.run()
    assert np.array_equal(before[:-1], after[:-1])
    assert not np.allclose(before[-1], after[-1])


@pytest.mark.parametrize(("dk", "dv"), [(12, 16), (16, 12), (584, 64)])
def test_odd_head_dimensions_are_refused(dk, dv):
    with pytest.raises(UnsupportedModelError, match="multiples of 8"):
        make(2, 4, 1, 1, dk, dv).run()


def test_query_heads_must_share_evenly():
    problem = make(2, 4, 2, 1, 16, 16)
    problem.q = np.concatenate([problem.q, problem.q[:, :1]], axis=1)
    with pytest.raises(UnsupportedModelError, match="cannot share"):
        problem.run()


@pytest.mark.parametrize("cells", [np.arange(3), np.arange(2, dtype=np.int32)])
def test_cells_must_match_the_queries(cells):
    layer = ffi.new("ice_layer *")
    layer.n_tokens = 2
    with pytest.raises(ValueError, match=r"cells must be int64 \[2\]"):
        Attention(1).run(layer, HostPages(ModelShape(1, 1, 1, 8, 8), 1), cells)
