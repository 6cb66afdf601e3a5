"""Follower: a layer that keeps the tokens which one before it has chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numba import prange

from .device.host import upload_head
from .half import kernel
from .memory import Arena
from .slots import assign_head

if TYPE_CHECKING:
    from .layer_cache import LayerCache


class Follower:
    """Makes the tokens resident in one layer that another layer has chosen.

    Parameters
    ----------
    cache : LayerCache
        All its pages must be in memory.
    leader : LayerCache
        Of the same number of KV heads and slots.
    n_ctx : int
        Most tokens of the sequence.
    """

    def __init__(self, cache: LayerCache, leader: LayerCache, n_ctx: int) -> None:
        self._cache, self.leader = cache, leader
        heads = cache.shape.n_kv_heads
        self._arena = Arena()
        self._place_of = self._arena.zeros((heads, n_ctx), np.int32)
        self._places = np.zeros_like(leader.selector.tokens)
        self._version = -1

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._place_of[:, : self._cache.n_tokens].nbytes

    def run(self, tail: np.ndarray) -> None:
        """Follow the leader's last choice; `tail` int32 [n], the tail's pages."""
        cache, start = self._cache, time.perf_counter_ns()
        pages, slots, counters = cache.pages, cache.slots, cache.counters
        leaves = np.zeros(0, np.int32)
        if self._version != cache.index.version:
            self._version = cache.index.version
            leaves = np.arange(cache.first_leaf, int(pages.n_pages.max()), dtype=np.int32)
        step = (
            *(self.leader.selector.tokens, (pages.ids, pages.fill), (leaves, tail)),
            *(self._place_of, self._places, slots.no_rest, slots.arrays),
        )
        if cache.device.in_place:  # in one launch, as `DecodeStep`
            kv = pages.kv.reshape(len(pages.kv), -1)
            _follow_and_upload_all(*step, kv, *cache.device.upload_arrays(cache.slot_cells))
        else:
            _follow_all(*step)
            start = counters.add_stage("assign", start)
            cache.device.upload(
                pages, cache.slot_cells, slots.miss_slots, slots.miss_places, slots.n_miss
            )
        counters.add_stage("upload", start)


@kernel()
def _note_places(ids, fill, pages, place_of):
    for page in pages:
        for i in range(fill[page]):
            place_of[ids[page, i] - 1] = page * 16 + i


@kernel()
def _follow(g, tokens, rows, changed, place_of, places, no_rest, slots):
    leaves, tail = changed
    _note_places(rows[0][g], rows[1][g], leaves, place_of[g])
    _note_places(rows[0][g], rows[1][g], tail, place_of[g])
    for i in range(tokens.shape[1]):
        places[g, i] = place_of[g, tokens[g, i]]
    assign_head(g, tokens, places, no_rest, slots)


@kernel(parallel=True)
def _follow_all(tokens, rows, changed, place_of, places, no_rest, slots):
    """Look the places of `tokens` [G, S] up and assign slots to them.

    Parameters
    ----------
    tokens, places : int32 arrays [G, S]
    rows : tuple
        `HostPages.ids` and `.fill`.
    changed : tuple of int32 arrays
        Leaves and tail pages whose tokens have come or moved since the last call.
    place_of : int32 array [G, n_ctx]
    no_rest : int32 array [G]
    slots : tuple
        `SlotTable.no_rest` and `.arrays`.
    """
    for g in prange(tokens.shape[0]):
        _follow(np.int64(g), tokens, rows, changed, place_of, places, no_rest, slots)


@kernel()
def _follow_and_upload(
    g, tokens, rows, changed, place_of, places, no_rest, slots, kv, target, shape
):
    _follow(g, tokens, rows, changed, place_of, places, no_rest, slots)
    miss_slots, miss_places, n_miss = slots[3][g], slots[4][g], slots[5][g]
    upload_head(kv[g], g, miss_slots, miss_places, np.int64(n_miss), target, shape)


@kernel(parallel=True)
def _follow_and_upload_all(
    tokens, rows, changed, place_of, places, no_rest, slots, kv, target, shape
):
    """As `_follow_all`, and then `upload_head` of every head."""
    for g in prange(tokens.shape[0]):
        _follow_and_upload(
            *(
                np.int64(g),
                tokens,
                rows,
                changed,
                place_of,
                places,
                no_rest,
                slots,
                kv,
                target,
                shape,
            )
        )
