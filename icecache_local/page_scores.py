"""How much attention queries give to pages whose keys are known by mean and variance alone."""

from __future__ import annotations

import numpy as np
from numba import prange

from .half import FAST, exp_nonpositive, kernel, load
from .layer_cache import LayerCache

ROWS = 64  # queries scored at once: bounds the scores' memory


def page_masses(
    cache: LayerCache,
    leaves: list[tuple[np.ndarray, np.ndarray]],
    q: np.ndarray,
    scale: float,
) -> list[np.ndarray]:
    """Estimate the attention mass of every indexed page, summed over queries.

    The softmax runs over all tokens, sink and tail included. For Gaussian keys of mean c and
    diagonal covariance v the mean of exp(q.k) is exp(q.c + q^2.v / 2). Beyond the log of the
    number of keys the second term is bounded, as in the index's search: no key of a few lies as
    far out as the mean of exp(q.k) wants it.

    Parameters
    ----------
    cache : LayerCache
    leaves : list
        `MDCIndex.leaves` of every head.
    q : float32 array [T, H, Dk]
    scale : float

    Returns
    -------
    list of float32 arrays [leaves of the head], one per KV head
    """
    pages, index, dim = cache.pages, cache.index, q.shape[2]
    heads, group = len(leaves), cache.shape.group
    n = np.array([len(numbers) for numbers, _ in leaves])
    numbers = np.zeros((heads, n.max()), np.int32)
    for g, (found, _) in enumerate(leaves):
        numbers[g, : n[g]] = found
    places = np.flatnonzero(pages.ids[0, : cache.first_leaf])  # of sink and tail in all heads
    mass = np.zeros(numbers.shape, np.float32)
    scores = np.empty((heads, n.max() + len(places), ROWS), np.float32)
    mine = q.reshape(len(q), heads, group, dim).transpose(1, 3, 0, 2).reshape(heads, dim, -1)
    for start in range(0, mine.shape[2], ROWS):
        block = np.full((heads, dim, ROWS), 0, np.float32)
        n_rows = min(ROWS, mine.shape[2] - start)
        block[:, :, :n_rows] = mine[:, :, start : start + n_rows] * np.float32(scale)
        widths = np.einsum("gdr,gd->gr", block * block, index.variance_shares) / 2
        add_masses(
            *(block, widths, n_rows, (index.centroids, index.centroid_scales, index.spreads)),
            *(pages.kv.reshape(heads, -1), pages.fill, places, numbers, n, mass, scores),
        )
    return [mass[g, : n[g]] for g in range(heads)]


@kernel(fastmath=FAST)
def _multiply(vector, q, out):
    """out[r] = sum(vector[d] * q[d, r])."""
    dim = q.shape[0]
    out[:] = 0
    for d in range(0, dim - 3, 4):
        a, b, c, e = vector[d], vector[d + 1], vector[d + 2], vector[d + 3]
        q0, q1, q2, q3 = q[d], q[d + 1], q[d + 2], q[d + 3]
        for r in range(ROWS):
            out[r] += a * q0[r] + b * q1[r] + c * q2[r] + e * q3[r]
    for d in range(dim - dim % 4, dim):
        for r in range(ROWS):
            out[r] += vector[d] * q[d, r]


@kernel(fastmath=FAST)
def _widen(out, spread, log_fill, widths, halves):
    """Add what a page's variance and its number of keys give to the scores."""
    root = np.float32(2) * np.sqrt(log_fill * spread)
    for r in range(ROWS):
        s = spread * widths[r]
        out[r] += log_fill + (s if s <= log_fill else root * halves[r] - log_fill)


@kernel(fastmath=FAST)
def _weigh(scores, n, top, total):
    """Turn `n` rows of scores into exp(score - top); their sums."""
    for i in range(n):
        row = scores[i]
        for r in range(ROWS):
            top[r] = max(top[r], row[r])
    for i in range(n):
        row = scores[i]
        for r in range(ROWS):
            row[r] = exp_nonpositive(row[r] - top[r])
            total[r] += row[r]


@kernel(fastmath=FAST)
def _sum_weighted(row, share):
    total = np.float32(0)
    for r in range(ROWS):
        total += row[r] * share[r]
    return total


@kernel()
def _add_head(q, widths, n_rows, index, g, kv, fill, places, numbers, n, mass, scores):
    centroids, scales, spreads = index[0][g], index[1][g], index[2][g]
    dim, width = q.shape[0], kv.shape[0] // fill.shape[0]
    vector, halves = np.empty(dim, np.float32), np.sqrt(widths)
    for i in range(n):
        page = np.int64(numbers[i])
        for d in range(dim):
            vector[d] = centroids[page * dim + d] * scales[page]
        _multiply(vector, q, scores[i])
        _widen(scores[i], spreads[page], np.log(np.float32(fill[page])), widths, halves)
    n_all = n + places.shape[0]
    for i in range(n, n_all):
        page, row = places[i - n] >> 4, places[i - n] & 15
        for d in range(dim):
            vector[d] = load(kv, page * width + row * dim + d)
        _multiply(vector, q, scores[i])
    top, total = np.full(ROWS, -np.inf, np.float32), np.zeros(ROWS, np.float32)
    _weigh(scores, n_all, top, total)
    for r in range(ROWS):
        total[r] = np.float32(1) / total[r] if r < n_rows else np.float32(0)
    for i in range(n):
        mass[i] += _sum_weighted(scores[i], total)


@kernel(parallel=True)
def add_masses(q, widths, n_rows, index, kv, fill, places, numbers, n, mass, scores):
    """Add the softmax weights of pages, summed over queries, to `mass`.

    Parameters
    ----------
    q : float32 array [G, Dk, ROWS]
        Scaled queries, zero from row `n_rows` on.
    widths : float32 array [G, ROWS]
        q^2.v / 2 for a variance of 1.
    n_rows : int
    index : tuple
        Centroids (int8 [G, P * Dk]), their scales and the pages' variances (float32 [G, P]).
    kv : uint16 array [G, P * width]
    fill : int32 array [G, P]
    places : int64 array [m]
        page * 16 + row of single keys that the softmax runs over too.
    numbers : int32 array [G, N]
        Pages.
    n : int64 array [G]
        How many of them.
    mass : float32 array [G, N]
    scores : float32 array [G, >= N + m, ROWS]
        Work space.
    """
    for g in prange(q.shape[0]):
        _add_head(
            *(q[g], widths[g], n_rows, index, np.int64(g), kv[g], fill[g], places, numbers[g]),
            *(n[g], mass[g], scores[g]),
        )
