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
def _use_copies(found, state, ids, slot_of, first_copy):
    """Let absent rows of which there is a copy lie in it."""
    for i in range(found.shape[0]):
        place = found[i]
        if place < 0:
            break
        if state[place >> 4] & ABSENT:
            token = ids[place >> 4, place & 15]
            slot = slot_of[token - 1] - 1
            if slot >= 0 and ids[first_copy + (slot >> 4), slot & 15] == token:
                found[i] = first_copy * 16 + slot


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
def _mark(state, found, log_weights, n_slots, bounds, later, space):
    """Mark the absent pages that one head needs as WANTED, and list those for `later`."""
    n, n_absent, lost = ZERO, ZERO, np.float32(0)
    while n < found.shape[0] and found[n] >= 0:
        if state[found[n] >> 4] & ABSENT:
            n_absent += 1
            lost += _square(log_weights[n])
        n += 1
    now, soon = bounds
    if n_absent == 0 or (lost <= soon * soon and n - n_absent >= n_slots):
        return
    n_best = take_best(log_weights, space.numbers, n, n_slots, space.picked, space.work)
    missing, squares = np.empty(n_best, np.int32), np.empty(n_best, np.float32)
    m, lost = ZERO, np.float32(0)
    for i in range(n_best):
        page = found[space.picked[i]] >> 4
        missing[m], squares[m] = page, _square(log_weights[space.picked[i]])
        if state[page] & ABSENT:
            lost += squares[m]
            m += 1
    n_spare = n - n_absent - (n_best - m)  # could be chosen in the place of those missing
    while m > 0 and (m > n_spare or lost > now * now):
        page = missing[_heaviest(squares, m)]
        state[page] |= WANTED
        m, gone = _take(missing, squares, m, page)
        lost -= gone
    n_later = ZERO
    while m > 0 and lost > soon * soon and n_later < later.shape[0]:
        page = missing[_heaviest(squares, m)]
        later[n_later] = page * np.int32(16)
        n_later += 1
        m, gone = _take(missing, squares, m, page)
        lost -= gone


@kernel()
def admit(found, log_weights, n_slots, tables, bounds, later, space):
    """Drop the candidates that are neither in memory nor worth reading.

    Of a head's candidates the best `n_slots` would be chosen. Those of them that are absent are
    read, the heaviest first, until the attention that the others would have is at most `bounds[0]`
    more than what candidates in memory have in their place; `later` tells what to read for the
    next steps, until no more than `bounds[1]` is missing. For values of norm V the output of a
    query head then changes by at most
    2 `bounds[0]` V, as far as the index's estimates are right.

    Parameters
    ----------
    found : int32 array [G, C]
        Places (page * 16 + row) of candidates, then -1; of those to go on with, afterwards.
    log_weights : float32 array [G, >= C]
        Logarithm of the softmax weight that each candidate seems to have.
    n_slots : int
        Candidates that must be left, if there are so many.
    tables : tuple
        state (uint8 [G, P]) and ids (int32 [G, P, 16]) of `HostPages`, slot_of of `SlotTable`,
        and the first page of copies, see `LayerCache`: a copy stands for a row whose page is
        absent.
    bounds : tuple of float32
        Shares of a query head's attention, the larger first.
    later : int32 array [G, L]
        Receives places of absent pages, the heaviest first, then -1.
    space : AdmissionSpace
    """
    state, ids, slot_of, first_copy = tables
    for g in range(found.shape[0]):
        pages, row = state[g], found[g]
        _use_copies(row, pages, ids[g], slot_of[g], first_copy)
        later[g, :] = -1
        _mark(pages, row, log_weights[g], n_slots, bounds, later[g], space)
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
