"""Which of a step's candidates are worth reading from the disk."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numba import prange

from .config import PAGE
from .half import ZERO, dot, exp_nonpositive, kernel
from .host_pages import ABSENT, WANTED, HostPages
from .mdci.cluster import row_start
from .mdci.search import take_best


class _Space(NamedTuple):
    """Work space; one head's part lacks the first axis.

    Attributes
    ----------
    work : float32 array [G, C]
    numbers, picked : int32 array [G, C]
        `numbers` counts from 0.
    """

    work: np.ndarray
    numbers: np.ndarray
    picked: np.ndarray


_of_thread = threading.local()


def _space_for(heads: int, n: int) -> _Space:
    """Return this thread's work space for `n` candidates per head; all layers share it."""
    spaces = _of_thread.__dict__
    if (heads, n) not in spaces:
        numbers = np.tile(np.arange(n, dtype=np.int32), (heads, 1))
        work = np.zeros((heads, n), np.float32)
        spaces[heads, n] = _Space(work, numbers, np.zeros_like(numbers))
    return spaces[heads, n]


class Admission:
    """Lets a decode step do without candidates that are on the disk and hardly attended to.

    Of a head's candidates the best `n_slots` would be chosen. Those of them that are absent are
    read, the heaviest first, until the root of the sum of the squared attention weights of the
    others is at most `bound`: values that have nothing to do with each other, of norm V, then
    change the head's output by about `bound` V. (Many small weights are no harm together: what
    replaces them says as much. One large weight is.) The weights are those that the index
    expects; no key is read for them.

    Parameters
    ----------
    pages : HostPages
    first_leaf, first_copy : int
        See `LayerCache`. A copy stands for a row whose page is absent.
    n_slots : int
        Candidates that must be left, if there are so many.
    bound : float
    """

    def __init__(
        self, pages: HostPages, first_leaf: int, first_copy: int, n_slots: int, bound: float
    ) -> None:
        self.pages, self._limits = pages, (first_leaf, first_copy, n_slots)
        self._most = np.float32(bound * bound)

    def admit(
        self,
        q: np.ndarray,
        candidates: np.ndarray,
        log_weights: np.ndarray,
        log_mass: np.ndarray,
        slot_of: np.ndarray,
        unread: np.ndarray,
    ) -> None:
        """Drop the candidates that are neither in memory nor worth reading.

        Parameters
        ----------
        q : float32 array [H, Dk]
            Queries times the softmax's scale.
        candidates : int32 array [G, C]
            Places (page * 16 + row), then -1; of those to go on with, afterwards.
        log_weights : float32 array [G, >= C]
            Logarithm of each candidate's share of the attention to all indexed tokens.
        log_mass : float32 array [H]
            Logarithm of the sum of exp(q.k) over these, see `MDCIndex.log_mass`.
        slot_of : int32 array [G, n_ctx]
            See `SlotTable`.
        unread : float32 array [G]
            Receives the attention expected of those dropped, as a part of that expected of the
            others (so that an index that expects too much or too little does so of both).
        """
        pages, heads = self.pages, len(candidates)
        _admit_all(
            q.reshape(heads, -1),
            (candidates, log_weights, log_mass.reshape(heads, -1), slot_of),
            (pages.kv.reshape(heads, -1), pages.ids, pages.fill, pages.state),
            (*self._limits, pages.shape.head_dim_k),
            self._most,
            unread,
            _space_for(heads, candidates.shape[1]),
        )


@kernel()
def _use_copies(found, state, ids, slot_of, first_copy):
    """Let absent rows of which there is a copy lie in it; how many other absent ones there are."""
    n_absent = ZERO
    for i in range(found.shape[0]):
        place = found[i]
        if place < 0:
            break
        if state[place >> 4] & ABSENT:
            token = ids[place >> 4, place & 15]
            slot = slot_of[token - 1] - 1
            if slot >= 0 and ids[first_copy + (slot >> 4), slot & 15] == token:
                found[i] = first_copy * PAGE + slot
            else:
                n_absent += 1
    return n_absent


@kernel()
def _indexed_share(kv, fill, q, log_mass, first_leaf, dim):
    """Logarithm of the share of the attention that indexed tokens get, at most, of any query."""
    width, share = kv.shape[0] // fill.shape[0], np.float32(-np.inf)
    for r in range(log_mass.shape[0]):
        total = np.float32(1)  # in units of exp(log_mass)
        for page in range(first_leaf):
            for i in range(fill[page]):
                at = row_start(page * PAGE + i, width, dim)
                score = dot(kv, at, q, np.int64(r * dim), dim) - log_mass[r]
                total += np.exp(min(score, np.float32(80)))
        share = max(share, -np.log(total))
    return share


@kernel(inline="always")
def _square(log_weight):
    return exp_nonpositive(min(np.float32(2) * log_weight, np.float32(0)))


@kernel()
def _heaviest(squares, n):
    best = ZERO
    for i in range(n):
        best = i if squares[i] > squares[best] else best
    return best


@kernel()
def _take(missing, squares, m, page):
    """Remove the tokens of a page; how many are left, and what was removed."""
    gone, i = np.float32(0), ZERO
    while i < m:
        if missing[i] == page:
            m -= 1
            gone += squares[i]
            missing[i], squares[i] = missing[m], squares[m]
        else:
            i += 1
    return m, gone


@kernel()
def _mark(state, found, n_absent, log_weights, share, n_slots, most, space):
    """Mark the absent pages that are read as WANTED."""
    n = ZERO
    while n < found.shape[0] and found[n] >= 0:
        n += 1
    n_best = take_best(log_weights, space.numbers, n, n_slots, space.picked, space.work)
    missing, squares = np.empty(n_best, np.int32), np.empty(n_best, np.float32)
    m, lost = ZERO, np.float32(0)
    for i in range(n_best):
        candidate = space.picked[i]
        page = found[candidate] >> 4
        missing[m], squares[m] = page, _square(log_weights[candidate] + share)
        if state[page] & ABSENT:
            lost += squares[m]
            m += 1
    n_spare = n - n_absent - (n_best - m)  # could be chosen in the place of those missing
    while m > 0 and (m > n_spare or lost > most):
        page = missing[_heaviest(squares, m)]
        state[page] |= WANTED
        m, gone = _take(missing, squares, m, page)
        lost -= gone


@kernel()
def _keep(found, state, log_weights):
    """Keep the rows whose pages are in memory or WANTED, which they then are no more.

    Returns the attention expected of the others, as a part of that of those kept.
    """
    n, left_out, kept = ZERO, np.float32(0), np.float32(0)
    for i in range(found.shape[0]):
        if found[i] < 0:
            break
        flags = state[found[i] >> 4]
        weight = exp_nonpositive(min(log_weights[i], np.float32(0)))
        if flags & ABSENT and not flags & WANTED:
            left_out += weight
        else:
            kept += weight
            found[n] = found[i]
            n += 1
    for i in range(n):
        state[found[i] >> 4] &= ~np.uint8(WANTED)
    found[n:] = -1
    return left_out / kept if kept > 0 else np.float32(0)


@kernel()
def _admit(g, q, index, pages, limits, most, unread, space):
    unread[g] = 0
    found, log_mass, slot_of = index[0][g], index[2][g], index[3][g]
    kv, ids, fill, state = pages[0][g], pages[1][g], pages[2][g], pages[3][g]
    first_leaf, first_copy, n_slots, dim = limits
    n_absent = _use_copies(found, state, ids, slot_of, first_copy)
    if n_absent == 0:
        return
    share = _indexed_share(kv, fill, q[g], log_mass, first_leaf, dim)
    mine = _Space(space.work[g], space.numbers[g], space.picked[g])
    _mark(state, found, n_absent, index[1][g], share, n_slots, most, mine)
    unread[g] = _keep(found, state, index[1][g])


@kernel(parallel=True)
def _admit_all(q, index, pages, limits, most, unread, space):
    """Run `_admit` for every KV head; all arrays [G, ...]."""
    for g in prange(q.shape[0]):
        _admit(np.int64(g), q, index, pages, limits, most, unread, space)
