"""Admission: what a decode step does without weighs little, and nothing else is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecache_local.admission import Admission
from icecache_local.config import PAGE, CacheConfig, ModelShape
from icecache_local.errors import ConfigError
from icecache_local.host_pages import ABSENT, HostPages

SHAPE = ModelShape(1, 4, 2, 64, 32)
FIRST_LEAF, N_PAGES, N_SLOTS = 3, 40, 24
FIRST_COPY = N_PAGES


class Step:
    """One decode step over random pages, some of them absent."""

    def __init__(self, seed: int, share_absent: float, spread: float) -> None:
        rng = np.random.default_rng(seed)
        pages = HostPages(SHAPE, N_PAGES + 2)
        self.pages = pages
        heads = SHAPE.n_kv_heads
        pages.n_pages[:] = N_PAGES
        pages.fill[:, :N_PAGES] = PAGE
        rows = rng.standard_normal(pages.kv.shape).astype(np.float16)
        pages.kv[:] = rows.view(np.uint16)
        for ids in pages.ids:
            ids[:N_PAGES] = 1 + rng.permutation(N_PAGES * PAGE).reshape(N_PAGES, PAGE)
        absent = rng.random((heads, N_PAGES - FIRST_LEAF)) < share_absent
        pages.state[:, FIRST_LEAF:N_PAGES] = np.where(absent, ABSENT, 0)
        self.n = int(rng.integers(1, 300))
        leaves = np.arange(FIRST_LEAF * PAGE, N_PAGES * PAGE, dtype=np.int32)
        self.found = np.full((heads, self.n + 3), -1, np.int32)
        for row in self.found:
            row[: self.n] = rng.permutation(leaves)[: self.n]
        log_weights = spread * rng.standard_normal((heads, self.n + 9)) - 4
        self.log_weights = log_weights.astype(np.float32)
        self.q = rng.standard_normal((SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32) / 8
        self.log_mass = rng.normal(6, 1, SHAPE.n_heads).astype(np.float32)
        self.slot_of = np.zeros((heads, N_PAGES * PAGE), np.int32)
        self.unread = np.full(heads, 9, np.float32)

    def admit(self, bound: float) -> np.ndarray:
        admission = Admission(self.pages, FIRST_LEAF, FIRST_COPY, N_SLOTS, bound)
        kept = self.found.copy()
        index = self.log_weights, self.log_mass, self.slot_of
        admission.admit(self.q, kept, *index, self.unread)
        return kept

    def weights(self, g: int) -> np.ndarray:
        """Softmax weights of head g's candidates, tokens outside of the index counted."""
        dim = SHAPE.head_dim_k
        near = self.pages.kv[g, :FIRST_LEAF, : PAGE * dim].reshape(-1, dim).view(np.float16)
        rows = slice(g * SHAPE.group, (g + 1) * SHAPE.group)
        scores = self.q[rows].astype(float) @ near.astype(float).T - self.log_mass[rows, None]
        share = 1 / (1 + np.exp(scores).sum(axis=1))
        return np.minimum(1, np.exp(self.log_weights[g, : self.n]) * share.max())


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([0.0, 0.003, 0.03, 0.5]),
)
def test_what_is_left_out_weighs_little_and_is_absent(seed, share_absent, spread, bound):
    step = Step(seed, share_absent, spread)
    state = step.pages.state.copy()
    kept = step.admit(bound)
    assert np.array_equal(step.pages.state, state), "a page stays marked"
    for g, row in enumerate(kept):
        found, state_of = step.found[g, : step.n], state[g]
        m = np.count_nonzero(row >= 0)
        assert (row[m:] == -1).all()
        stays = np.isin(found, row)
        assert np.array_equal(found[stays], row[:m]), "the order has changed"
        absent = state_of[found >> 4] & ABSENT > 0
        assert stays[~absent].all(), "a candidate in memory was dropped"
        assert m >= min(N_SLOTS, step.n)
        read = np.unique(found[stays & absent] >> 4)
        assert np.array_equal(stays[absent], np.isin(found[absent] >> 4, read)), "half a page"
        best = np.argsort(-step.log_weights[g, : step.n], kind="stable")[:N_SLOTS]
        lost = np.square(step.weights(g)[best][~stays[best]]).sum()
        assert np.sqrt(lost) <= bound * 1.01 + 1e-6
        expected = np.exp(np.minimum(step.log_weights[g, : step.n].astype(float), 0))
        ratio = expected[~stays].sum() / expected[stays].sum()
        assert step.unread[g] == pytest.approx(ratio, rel=1e-4)
        # No page was read for nothing.
        wanted = found[best[absent[best]]] >> 4
        assert np.isin(read, wanted).all()
        if len(read) and m - np.isin(found >> 4, read).sum() >= N_SLOTS:
            unread = np.square(step.weights(g)[best][absent[best]]).sum()
            assert np.sqrt(unread) >= bound * 0.99


def test_a_copy_stands_for_a_row_that_is_on_the_disk():
    step = Step(1, 1.0, 1.0)
    pages, place = step.pages, int(step.found[0, 0])
    token = pages.ids[0, place >> 4, place & 15]
    step.slot_of[0, token - 1] = 18
    assert FIRST_COPY * PAGE + 17 not in step.admit(0.0)[0], "a slot that was given to another"
    pages.ids[0, FIRST_COPY + 1, 1] = token
    kept = step.admit(0.0)
    assert kept[0, 0] == FIRST_COPY * PAGE + 17
    pages.state[0, place >> 4] = 0
    assert step.admit(0.0)[0, 0] == place


def test_what_may_stay_unread_is_bounded():
    assert CacheConfig().most_unread == 0 and CacheConfig(ram_limit=1).most_unread == 0.01
    assert CacheConfig(ram_limit=1, unread=0).most_unread == 0
    for wrong in (-0.1, 0.6, float("nan")):
        with pytest.raises(ConfigError, match="unread is .* must lie between 0 and 0.5"):
            CacheConfig(unread=wrong)
