"""A whole step of one layer in a single launch: query, select, assign, upload.

Every KV head is for itself, and what a head has just chosen is still in its core's cache. Starting
threads and handing over arrays costs as much as the query of a head, four times per layer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .device.host import upload_head
from .half import kernel
from .mdci.kernels import query_head
from .selection import select_head
from .slots import assign_head

if TYPE_CHECKING:
    from .layer_cache import LayerCache

STAGES = "query", "select", "assign", "upload"


class DecodeStep:
    """Does what the four calls of `LayerCache.load` do, for cells in host memory.

    Parameters
    ----------
    cache : LayerCache
        All its pages must be in memory.
    """

    def __init__(self, cache: LayerCache) -> None:
        self._cache = cache
        self._ticks = np.zeros((cache.shape.n_kv_heads, len(STAGES) + 1), np.int64)

    def run(self, q: np.ndarray, scale: float, tail: np.ndarray, real_from: int) -> None:
        """Make the tokens resident that matter to `q`.

        Parameters
        ----------
        q : float32 array [H, Dk]
        scale : float
            Factor of q.k in the softmax.
        tail : int32 array [n]
            The tail's pages, the oldest first.
        real_from : int
            Tokens from here on sit in cells of their own.
        """
        cache, start = self._cache, time.perf_counter_ns()
        selector, slots, shape = cache.selector, cache.slots, cache.shape
        n_sink_pages = cache.tail.first_page
        selector.reserve_for(cache.index.n_least, len(tail), n_sink_pages)
        step_all(
            *cache.index.search_arguments(q),
            np.float32(scale),
            tail,
            (
                *(cache.n_tokens - cache.window, real_from, n_sink_pages, shape.head_dim_k),
                selector.rest_page,
            ),
            *selector.arrays,
            slots.arrays,
            *cache.device.upload_arrays(cache.slot_cells),
            self._ticks,
        )
        selector.check()
        self._note_times(time.perf_counter_ns() - start)

    def _note_times(self, ns: int) -> None:
        """Share the step's time out in proportion to the stages' ticks."""
        ticks = np.diff(self._ticks).sum(0)
        shares = ticks / max(1, ticks.sum()) * ns
        for name, share in zip(STAGES, shares.tolist(), strict=True):
            self._cache.counters.add_ns(name, int(share))


@intrinsic
def _tick(typingctx):
    """Read the CPU's cycle counter, where it has one."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        read = cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter")
        return builder.call(read, [])

    return types.int64(), codegen


@kernel()
def _step(search, g, scale, tail, limits, chosen, work, slots, cells, ticks):
    forest, q, answer, sizes, space = search
    ticks[g, 0] = _tick()
    query_head(forest, g, q, scale, sizes, answer, space)
    ticks[g, 1] = _tick()
    pages, log_mass = (forest.kv, forest.ids, forest.fill), answer[1]
    select_head(pages, g, q, scale, answer[0], log_mass[g], tail, limits, chosen, work)
    ticks[g, 2] = _tick()
    seen, n_slots = chosen[3][g], chosen[0].shape[1]
    if seen[0] < n_slots or seen[1] > n_slots:
        ticks[g, 3:] = ticks[g, 2]
        return
    assign_head(g, chosen[0], chosen[1], chosen[4], slots)
    ticks[g, 3] = _tick()
    n_miss, miss_slots, miss_places = slots[5][g], slots[3][g], slots[4][g]
    upload_head(forest.kv[g], g, miss_slots, miss_places, np.int64(n_miss), *cells)
    ticks[g, 4] = _tick()


@kernel(parallel=True)
def step_all(
    forest, q, answer, sizes, space, scale, tail, limits, chosen, work, slots, cells, rows, ticks
):
    """Run all stages for every KV head; a head with too few tokens stops after the selection.

    Parameters
    ----------
    forest, q, answer, sizes, space : tuple
        `MDCIndex.search_arguments`.
    scale : float32
    tail : int32 array [n]
    limits : tuple of int
        First forced and first excluded position, sink pages, elements of a key, the remainder's
        page or -1.
    chosen, work : tuple
        `Selector.arrays`.
    slots : tuple
        `SlotTable.arrays`.
    cells, rows : tuple
        `HostDevice.upload_arrays`.
    ticks : int64 array [G, 5]
        Receives the cycle counter at the start and after each stage.
    """
    for g in prange(ticks.shape[0]):
        _step(
            (forest, q, answer, sizes, space),
            np.int64(g),
            scale,
            tail,
            limits,
            chosen,
            work,
            slots,
            (cells, rows),
            ticks,
        )
