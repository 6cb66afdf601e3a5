"""Which of a step's candidates are worth reading from the disk."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from .half import ZERO, exp_nonpositive, kernel
from .host_pages import ABSENT, WANTED
from .mdci.search import take_best


class AdmissionSpace(NamedTuple):
    """Work space for up to C candidates of one head.

    Attributes
    ----------
    weights, values, work : float32 array [C]
        `weights` are those of the candidates.
    numbers, picked : int32 array [C]
        `numbers` counts from 0.
    """

    weights: np.ndarray
    values: np.ndarray
    work: np.ndarray
    numbers: np.ndarray
    picked: np.ndarray


_of_thread = threading.local()


def admission_space(n: int) -> AdmissionSpace:
    """Return this thread's work space for `n` candidates; all layers share it."""
    spaces = _of_thread.__dict__
    if n not in spaces:
        numbers = np.arange(n, dtype=np.int32)
        spaces[n] = AdmissionSpace(*np.zeros((3, n), np.float32), numbers, np.zeros_like(numbers))
    return spaces[n]


@kernel()
def _spare(found, n, state, space, n_wanted):
    """How many candidates could replace `n_wanted`, and their attention.

    Candidates in memory, the best ones; those of weight -1 are left out.
    """
    m, total = ZERO, np.float32(0)
    for i in range(n):
        space.values[m] = space.weights[i]
        m += space.weights[i] >= 0 and not state[found[i] >> 4] & ABSENT
    n_best = take_best(space.values, space.numbers, m, n_wanted, space.picked, space.work)
    for i in range(n_best):
        total += space.values[space.picked[i]]
    return n_best, total


@kernel()
def _heaviest(weights, n):
    best = ZERO
    for i in range(n):
        best = i if weights[i] > weights[best] else best
    return best


@kernel()
def _mark(state, found, log_weights, n_slots, bound, space):
    """Mark the absent pages that one head needs as WANTED."""
    n, n_absent, lost = ZERO, ZERO, np.float32(0)
    weights = space.weights
    while n < found.shape[0] and found[n] >= 0:
        weights[n] = exp_nonpositive(min(log_weights[n], np.float32(0)))
        if state[found[n] >> 4] & ABSENT:
            n_absent += 1
            lost += weights[n]
        n += 1
    if n_absent == 0 or (lost <= bound and n - n_absent >= n_slots):
        return
    # Those that would be chosen, and of these the absent ones.
    n_best = take_best(log_weights, space.numbers, n, n_slots, space.picked, space.work)
    missing, weight_of = np.empty(n_best, np.int32), np.empty(n_best, np.float32)
    m, lost = ZERO, np.float32(0)
    for i in range(n_best):
        candidate = space.picked[i]
        missing[m], weight_of[m] = found[candidate] >> 4, weights[candidate]
        weights[candidate] = -1
        if state[missing[m]] & ABSENT:
            lost += weight_of[m]
            m += 1
    n_spare, spare = _spare(found, n, state, space, m)
    share = spare / np.float32(m) if n_spare == m else np.float32(0)
    while m > 0 and (m > n_spare or lost - m * share > bound):
        page = missing[_heaviest(weight_of, m)]
        state[page] |= WANTED
        i = ZERO
        while i < m:
            if missing[i] == page:
                m -= 1
                lost -= weight_of[i]
                missing[i], weight_of[i] = missing[m], weight_of[m]
            else:
                i += 1


@kernel()
def admit(found, log_weights, state, n_slots, bound, space):
    """Drop the candidates that are neither in memory nor worth reading.

    Of a head's candidates the best `n_slots` would be chosen. Those of them that are absent are
    read, the heaviest first, until the attention that the others would have is at most `bound`
    more than what candidates in memory have in their place. For values of norm V the output of a
    query head then changes by at most 2 `bound` V, as far as the index's estimates are right.

    Parameters
    ----------
    found : int32 array [G, C]
        Places (page * 16 + row) of candidates, then -1; of those to go on with, afterwards.
    log_weights : float32 array [G, >= C]
        Logarithm of the softmax weight that each candidate seems to have.
    state : uint8 array [G, P]
        See `HostPages`.
    n_slots : int
        Candidates that must be left, if there are so many.
    bound : float32
        Share of a query head's attention.
    space : AdmissionSpace
    """
    for g in range(found.shape[0]):
        pages, row = state[g], found[g]
        _mark(pages, row, log_weights[g], n_slots, bound, space)
        m = ZERO
        for i in range(row.shape[0]):
            if row[i] < 0:
                break
            flags = pages[row[i] >> 4]
            row[m] = row[i]
            m += not flags & ABSENT or flags & WANTED > 0
        for i in range(m):
            pages[row[i] >> 4] &= ~np.uint8(WANTED)
        row[m:] = -1
