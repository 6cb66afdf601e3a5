"""LayerCache over cells in plain arrays: no token is lost, whatever happens to the sequence."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icecache_local.config import CacheConfig, ModelShape
from icecache_local.device.host import HostDevice
from icecache_local.layer_cache import LayerCache
from icecache_local.mdci.layout import N_CHILD
from icecache_local.stats import Counters

N_CTX, N_BATCH = 4096, 64
SHAPE = ModelShape(1, 4, 2, 64, 32)
CONFIG = CacheConfig(budget=64, sink=16, window=16, candidate_pages=8)
N_CARRIERS = CONFIG.budget - 2


class ArrayDevice(HostDevice):
    """Cells in arrays of our own; the last N_BATCH cells take the new tokens."""

    def __init__(self) -> None:
        n_cells = N_CARRIERS + N_BATCH
        self.k = np.zeros((n_cells, SHAPE.n_kv_heads, SHAPE.head_dim_k), np.uint16)
        self.v = np.zeros((n_cells, SHAPE.n_kv_heads, SHAPE.head_dim_v), np.uint16)


class Sequence:
    """One layer fed with random tokens; remembers what every position must hold."""

    def __init__(self, seed: int, config: CacheConfig = CONFIG) -> None:
        self.rng = np.random.default_rng(seed)
        self.device = ArrayDevice()
        carriers = np.arange(N_CARRIERS, dtype=np.int32)
        self.cache = LayerCache(0, SHAPE, config, self.device, carriers, N_CTX, N_BATCH, Counters())
        self.k = np.zeros((0, *self.device.k.shape[1:]), np.uint16)
        self.v = np.zeros((0, *self.device.v.shape[1:]), np.uint16)
        for _ in range(3):
            self.append(N_BATCH)

    def append(self, n: int, finish: bool = True) -> None:
        k = self.rng.standard_normal((n, *self.device.k.shape[1:])).astype(np.float16)
        v = self.rng.standard_normal((n, *self.device.v.shape[1:])).astype(np.float16)
        cells = N_CARRIERS + self.rng.permutation(N_BATCH)[:n]
        self.device.k[cells], self.device.v[cells] = k.view(np.uint16), v.view(np.uint16)
        self.cache.append(cells.astype(np.int64), finish)
        self.k = np.concatenate([self.k, k.view(np.uint16)])
        self.v = np.concatenate([self.v, v.view(np.uint16)])

    def decode(self) -> None:
        self.append(1)
        q = self.rng.standard_normal((SHAPE.n_heads, SHAPE.head_dim_k)).astype(np.float32)
        self.cache.load(q, 0.125, real_from=len(self.k) - 2)
        window = np.arange(len(self.k) - CONFIG.window, len(self.k) - 2)
        rest = self.cache.pages.kv[:, self.cache.selector.rest_page].reshape(SHAPE.n_kv_heads, -1)
        for g, held in enumerate(self.cache.slots.token_in):
            (free,) = np.nonzero(held == 0)
            assert len(free) == (self.cache.selector.rest[g] >= 0)
            cells, row = self.cache.slot_cells[held > 0], held[held > 0] - 1
            assert (row >= CONFIG.sink).all() and (row < len(self.k) - 2).all()
            assert np.isin(window, row).all(), "a window token is not resident"
            assert np.array_equal(self.device.k[cells, g], self.k[row, g])
            assert np.array_equal(self.device.v[cells, g], self.v[row, g])
            for cell in self.cache.slot_cells[free]:
                assert np.array_equal(self.device.k[cell, g], rest[g, : SHAPE.head_dim_k])

    def truncate(self, n: int) -> None:
        self.cache.truncate(n)
        self.k, self.v = self.k[:n], self.v[:n]

    def check(self) -> None:
        cache, n = self.cache, len(self.k)
        cache.check_integrity(n)
        places = cache._places(0, n)
        k, v = cache.pages.rows(np.arange(len(places))[:, None], places)
        assert np.array_equal(k, self.k) and np.array_equal(v, self.v)


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "decode", "truncate", "state"]), st.integers(1, N_BATCH)),
    min_size=1,
    max_size=10,
)


@settings(deadline=None, max_examples=40)
@given(STEPS, st.integers(0, 2**31))
def test_no_token_lost_none_twice_after_any_history(steps, seed):
    sequence = Sequence(seed)
    for action, n in steps:
        if action == "read":
            sequence.append(n)
        elif action == "decode":
            for _ in range(n // 8 + 1):
                sequence.decode()
        elif action == "truncate":
            sequence.truncate(max(N_CARRIERS + 1, len(sequence.k) - n * 5))
        else:
            _reload(sequence)
        sequence.check()


def _reload(sequence: Sequence) -> None:
    old = sequence.cache
    sequence.cache = LayerCache(
        0,
        SHAPE,
        CONFIG,
        sequence.device,
        np.arange(N_CARRIERS, dtype=np.int32),
        N_CTX,
        N_BATCH,
        Counters(),
    )
    sequence.cache.load_state(old.state())


def test_restore_and_rewrite_write_the_tokens_of_their_positions():
    sequence = Sequence(5)
    cells = np.arange(40, dtype=np.int32)
    sequence.cache.restore(cells, first=20)
    assert np.array_equal(sequence.device.k[cells], sequence.k[20:60])
    assert np.array_equal(sequence.device.v[cells], sequence.v[20:60])
    sequence.cache.rewrite(3, position=len(sequence.k) - 1)
    assert np.array_equal(sequence.device.k[3], sequence.k[-1])


def test_shuffled_slots_hold_the_same_tokens():
    sequence = Sequence(6)
    sequence.decode()
    before = sequence.cache.slots.token_in.copy()
    sequence.cache.shuffle(np.random.default_rng(1))
    after = sequence.cache.slots.token_in
    assert not np.array_equal(before, after)
    assert np.array_equal(np.sort(before), np.sort(after))
    sequence.check()


def test_pages_are_ordered_bucket_by_bucket():
    sequence = Sequence(3)
    for _ in range(30):
        sequence.append(N_BATCH)
    cache = sequence.cache
    order, used = cache.page_order(), int(cache.pages.n_pages.max())
    for g, pages in enumerate(order):
        assert np.array_equal(np.sort(pages), np.arange(used))
        assert np.array_equal(pages[: cache.first_leaf], np.arange(cache.first_leaf))
        leaves, bucket = cache.index.leaves(g)
        assert np.array_equal(pages[cache.first_leaf :][: len(leaves)], leaves)
        in_use = np.flatnonzero(cache.pages.fill[g] > 0)
        assert np.array_equal(np.sort(leaves), in_use[in_use >= cache.first_leaf])
        node, fill = cache.index._forest.node[g], cache.pages.fill[g]
        buckets = {tuple(row[: row[N_CHILD]].tolist()) for row in node if row[N_CHILD]}
        for number in range(bucket.max() + 1):
            siblings = leaves[bucket == number]
            assert tuple(siblings.tolist()) in buckets
            assert (fill[siblings[:-1]] == 16).all(), "only a bucket's last page is partial"
