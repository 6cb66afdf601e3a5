"""The index's entry points for Python: all heads of a layer at once, one head per thread."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..half import kernel
from .layout import tree_of
from .nodes import empty_page
from .search import search
from .sketch import space_of
from .tree import FIRST_ROW, arrange_queued, insert_rows, seed_tree
from .truncation import truncate

KEEP_ALL = -1
STAGE, FIRST, ROW, END, QUEUE_LEFT = range(5)  # columns of a cursor
BEGIN, INSERT, ARRANGE, DONE = range(4)  # values of cursor[STAGE]
EXPONENT = np.uint16(0x7C00)  # all bits set: NaN or infinity


@kernel()
def first_non_finite(kv, ids, fill, pages, dim):
    """(head, position) of the first key with NaN or an infinity, else (-1, -1).

    Parameters
    ----------
    kv : uint16 array [G, P, width]
    ids : int32 array [G, P, 16]
    fill : int32 array [G, P]
    pages : int32 array [n]
    dim : int
        Elements of a key.
    """
    for g in range(kv.shape[0]):
        for page in pages:
            bad = 0
            for i in range(fill[g, page] * dim):
                bad |= (kv[g, page, i] & EXPONENT) == EXPONENT
            if bad:
                for i in range(fill[g, page] * dim):
                    if kv[g, page, i] & EXPONENT == EXPONENT:
                        return g, ids[g, page, i // dim] - 1
    return -1, -1


# A parallel loop below only calls one function and leaves all indexing to it: numba drops stores
# that the loop's own body makes through a named tuple, and compiles it slowly.


@kernel()
def _change(forest, g, n_tokens, pages, first_page, width, dim, cursor):
    t, cursor = tree_of(forest, g), cursor[g]
    if cursor[STAGE] == BEGIN:
        if n_tokens != KEEP_ALL:
            truncate(t, n_tokens, width, dim)
        t.n_pages[0] = max(t.n_pages[0], first_page)
        n = np.int64(FIRST_ROW)
        for page in pages:
            for i in range(t.fill[page]):
                t.order[n] = page * 16 + i
                n += 1
        # Enough to keep up with the arrivals, few enough to bound a single insert's time.
        first = seed_tree(t, np.int64(FIRST_ROW), n, width, dim)
        cursor[STAGE], cursor[FIRST], cursor[ROW], cursor[END] = INSERT, first, first, n
        cursor[QUEUE_LEFT] = 2 + (n - FIRST_ROW) // 8
    if cursor[STAGE] == INSERT:
        cursor[ROW] = insert_rows(t, cursor[FIRST], cursor[ROW], cursor[END], width, dim)
        if cursor[ROW] < cursor[END]:
            return
        cursor[STAGE] = ARRANGE
    if cursor[STAGE] == ARRANGE:
        cursor[QUEUE_LEFT] = arrange_queued(t, cursor[QUEUE_LEFT], width, dim)
        if cursor[QUEUE_LEFT] > 0:
            return
        for page in pages:
            empty_page(t, np.int64(page))
        cursor[STAGE] = DONE


@kernel(parallel=True)
def change_all(forest, n_tokens, pages, first_page, width, dim, cursor):
    """Drop positions >= n_tokens, then move the rows of `pages` into the trees.

    A head stops where it needs absent pages, which are then WANTED; called again with the same
    arguments, it goes on from there.

    Parameters
    ----------
    forest : Forest
    n_tokens : int
        KEEP_ALL to drop nothing; otherwise all pages must be in memory.
    pages : int32 array [n]
        The same for all heads; they end up empty.
    first_page, width, dim : int
        First leaf, elements of a page, elements of a key.
    cursor : int64 array [G, 5]
        How far each head is; all zero at first, cursor[:, STAGE] is DONE at the end.
    """
    for g in prange(forest.kv.shape[0]):
        _change(forest, np.int64(g), n_tokens, pages, first_page, width, dim, cursor)


@kernel()
def query_head(forest, g, q, scale, sizes, answer, space):
    """Search in head `g`'s tree; see `query_all`."""
    found, log_mass, scaled = answer
    for i in range(q.shape[1]):
        scaled[g, i] = q[g, i] * scale
    search(
        tree_of(forest, g),
        scaled[g],
        *sizes,
        found[g],
        log_mass[g],
        space_of(space, g),
    )


@kernel(parallel=True)
def query_all(forest, q, scale, sizes, answer, space):
    """Search in every tree.

    Parameters
    ----------
    forest : Forest
    q : float32 array [G, group * dim]
    scale : float32
        Factor of q.k in the softmax.
    sizes : tuple of int
        `dim`, `beam` and `n_best` of `search`.
    answer : tuple
        `found` (int32 [G, C]) and `log_mass` (float32 [G, group]) of `search`, and the
        scaled queries (float32 [G, group * dim]).
    space : SearchSpace
    """
    for g in prange(forest.kv.shape[0]):
        query_head(forest, np.int64(g), q, scale, sizes, answer, space)
