"""Streamed attention on an emulated card, against the dense float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_attention import make

from icecache_local.device import stream
from icecache_local.device.gpu import COMPUTE, COPY
from icecache_local.device.stream import StreamedAttention

TOLERANCE = 3e-3  # of the largest output; queries and weights are rounded to f16
TINY = 1  # a limit that nothing fits into: the smallest blocks are taken


def error(problem, gpu, limit, seed=0) -> float:
    """Largest difference from the oracle, over the largest output."""
    expected = problem.dense()
    ours = problem.run(seed=seed, attention=StreamedAttention(gpu, limit))
    return np.abs(ours - expected).max() / np.abs(expected).max()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n_new=st.integers(1, 90),
    n_past=st.integers(0, 400),
    g=st.integers(1, 3),
    group=st.integers(1, 5),
    dims=st.sampled_from([(8, 8), (64, 64), (40, 72), (128, 64)]),
    softcap=st.sampled_from([0.0, 30.0]),
    with_sinks=st.booleans(),
    sparse_pages=st.booleans(),
    heads_first=st.booleans(),
    limit=st.sampled_from([TINY, 256 << 20]),
    seed=st.integers(0, 2**31),
)
def test_equals_dense_attention(
    gpu, n_new, n_past, g, group, dims, softcap, with_sinks, sparse_pages, heads_first, limit, seed
) -> None:
    sinks = np.random.default_rng(seed).normal(0, 3, g * group).astype(np.float32)
    problem = make(
        *(n_new, n_past, g, group, *dims, seed),
        softcap=softcap,
        sinks=sinks if with_sinks else None,
        sparse_pages=sparse_pages,
        heads_first=heads_first,
    )
    assert error(problem, gpu, limit, seed) < TOLERANCE


def test_many_blocks_and_layers_share_the_buffers(gpu) -> None:
    attention = StreamedAttention(gpu, TINY)
    for seed in range(3):
        problem = make(20, 3000, 2, 2, 64, 64, seed)
        expected = problem.dense()
        ours = problem.run(seed=seed, attention=attention)
        assert np.abs(ours - expected).max() < TOLERANCE * np.abs(expected).max()


def test_the_limit_holds(gpu) -> None:
    limit = 2 << 20
    assert error(make(64, 5000, 2, 2, 64, 64), gpu, limit) < TOLERANCE
    assert limit // 2 < gpu.allocated <= limit


def test_later_tokens_are_not_seen(gpu) -> None:
    problem = make(48, 70, 2, 2, 32, 32)
    before = problem.run(attention=StreamedAttention(gpu, TINY))
    problem.k[:, -1], problem.v[:, -1] = 100, 100
    after = problem.run(attention=StreamedAttention(gpu, TINY))
    assert np.array_equal(before[:-1], after[:-1])
    assert not np.allclose(before[-1], after[-1])


@pytest.mark.parametrize("forgotten", ["staging", "copy stream", "compute stream"])
def test_the_emulation_notices_a_missing_wait(kernels, forgotten, monkeypatch) -> None:
    gpu = EmulatedGpu(kernels, lazy=True)
    wait, synchronize = gpu.wait, gpu.synchronize
    if forgotten == "staging":
        last = stream.COPIED[1]
        monkeypatch.setattr(gpu, "synchronize", lambda event: event == last or synchronize(event))
    else:
        target = COPY if forgotten == "copy stream" else COMPUTE
        monkeypatch.setattr(gpu, "wait", lambda on, event: on == target or wait(on, event))
    assert not error(make(20, 3000, 2, 2, 64, 64), gpu, TINY) < TOLERANCE


def test_softmax_gives_weights_of_one_block(kernels, rng) -> None:
    rows, columns, dim = 6, 20, 8
    logits = rng.normal(0, 3, (rows, columns)).astype(np.float32)
    top, total = np.full(rows, -1e30, np.float32), np.zeros(rows, np.float32)
    out, weights = np.ones((rows, dim), np.float32), np.ones((rows, columns), np.float16)
    n_keys = np.array([20, 7], np.int32)  # of two KV heads, three rows each
    arrays = [array.ctypes.data for array in (logits, weights, n_keys, top, total, out)]
    at = [np.uint64(address) for address in arrays]
    gpu = EmulatedGpu(kernels, lazy=False)
    shape = [np.int32(columns), np.int32(columns)]
    order = [np.int32(x) for x in (-1, 3, 1)]
    args = (*at[:2], *shape, at[2], *order, np.float32(0), *at[3:], np.int32(dim))
    before = logits.copy()
    gpu.launch("softmax_block", rows, 8, *args)
    for row in range(rows):
        seen = n_keys[row // 3]
        expected = np.exp(before[row, :seen] - before[row, :seen].max())
        np.testing.assert_allclose(weights[row, :seen], expected, rtol=1e-3, atol=1e-7)
        assert (weights[row, seen:] == 0).all()
        np.testing.assert_allclose(total[row], expected.sum(), rtol=1e-3)
    assert (out == 0).all()  # weights from before any key are worth nothing
