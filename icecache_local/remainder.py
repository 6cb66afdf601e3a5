"""The remainder: one row per KV head that stands for the tokens which were scored and not chosen.

A softmax over the chosen tokens alone gives them the attention of all others too. One more key and
value make up for that. The key is the least one with

    scale * q_r . k = log(sum over the rest of exp(scale * q_r . k_i))

for the queries r of the group, in the sense of least squares; the value is the mean of all tokens'.
The rest are the candidates that were scored exactly and not chosen: nothing is estimated, and no
further key is read. docs/results.md tells what it brings.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .config import ModelShape
from .half import FAST, dot, kernel, load, store, total_of

FIXED = np.float32(2**24)  # f16 values are whole multiples of 1 / FIXED: their sums are exact
LARGEST = np.float32(65504)  # f16
LEAST_SHARE = np.float32(1e-6)  # of a query's attention: less makes no difference
RIDGE = np.float32(1e-4)  # of the mean squared query: parallel queries that want different things


class ValueSum:
    """Sum of the values of a layer's tokens behind the sink, as whole numbers: no order matters.

    Attributes
    ----------
    total : int64 array [G, Dv]
        In units of 1 / FIXED. Infinities and NaN count as 0.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.total = np.zeros((shape.n_kv_heads, shape.head_dim_v), np.int64)

    def add(self, v: np.ndarray, rows: np.ndarray, sign: int = 1) -> None:
        """Add some of the rows of `v` (uint16 [n, G, Dv]), or with `sign` -1 take them away."""
        if v.shape[2]:
            _add_rows(np.ascontiguousarray(v).reshape(-1), rows, self.total, sign)

    def count(self, kv: np.ndarray, fill: np.ndarray, first_page: int, dim_k: int) -> None:
        """Begin anew with the tokens of the pages from `first_page` on."""
        self.total[:] = 0
        if self.total.shape[1]:
            _add_pages(kv.reshape(len(kv), -1), fill, first_page, dim_k, self.total)


@kernel()
def _fixed(values, i):
    value = load(values, i)
    return np.int64(value * FIXED) if abs(value) <= LARGEST else np.int64(0)


@kernel()
def _add_rows(v, rows, total, sign):
    heads, dim = total.shape
    for row in rows:
        for g in range(heads):
            for d in range(dim):
                total[g, d] += sign * _fixed(v, (row * heads + g) * dim + d)


@kernel()
def _add_pages_of(kv, fill, first_page, dim_k, total):
    dim = total.shape[0]
    for page in range(first_page, fill.shape[0]):
        at = page * 16 * (dim_k + dim) + 16 * dim_k
        for i in range(fill[page] * dim):
            total[i % dim] += _fixed(kv, at + i)


@kernel(parallel=True)
def _add_pages(kv, fill, first_page, dim_k, total):
    for g in prange(total.shape[0]):
        _add_pages_of(kv[g], fill[g], first_page, dim_k, total[g])


@kernel(fastmath=FAST)
def _solve(gram, n):
    """Solve gram[:n, :n] y = gram[:n, n] (Cholesky, in place); y ends up in gram[:n, n]."""
    for j in range(n):
        for i in range(j, n):
            value = gram[i, j]
            for k in range(j):
                value -= gram[i, k] * gram[j, k]
            gram[i, j] = np.sqrt(value) if i == j else value / gram[j, j]
    for i in range(n):
        for k in range(i):
            gram[i, n] -= gram[i, k] * gram[k, n]
        gram[i, n] /= gram[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            gram[i, n] -= gram[k, i] * gram[k, n]
        gram[i, n] /= gram[i, i]


@kernel()
def write_remainder(kv, page, q, scale, scores, n, gram, total, n_values):
    """Write the remainder's key and value into the first row of a page.

    Parameters
    ----------
    kv : uint16 array [P * 16 * (Dk + Dv)]
    page : int
    q : float32 array [group * Dk]
    scale : float32
    scores : float32 array [>= group, >= n]
        exp(logit - top) of the tokens that are left, 0 for others.
    n : int
    gram : float32 array [group, group + 2]
        The last two columns hold each query's top, and the sum of all its exp(logit - top).
    total : int64 array [Dv]
    n_values : int
        See `ValueSum`: how many values it holds.

    Returns
    -------
    bool
        False if there is no such row: every query is 0.
    """
    group, dim, dim_v = gram.shape[0], q.shape[0] // gram.shape[0], total.shape[0]
    trace = np.float32(0)
    for r in range(group):
        top, mass = gram[r, group], gram[r, group + 1]
        rest = max(total_of(scores[r], np.int64(0), n), LEAST_SHARE * mass)
        gram[r, group] = top + np.log(rest)
        for s in range(r + 1):
            gram[r, s] = scale * scale * dot(q, np.int64(r * dim), q, np.int64(s * dim), dim)
        trace += gram[r, r]
    if not trace > 0:
        return False
    for r in range(group):
        gram[r, r] += RIDGE * trace / np.float32(group)
    _solve(gram, group)
    at = page * 16 * (dim + dim_v)
    for d in range(dim):
        value = np.float32(0)
        for r in range(group):
            value += scale * gram[r, group] * q[r * dim + d]
        store(kv, at + d, min(max(value, -LARGEST), LARGEST))
    at += 16 * dim
    share = 1 / (np.float64(FIXED) * n_values)
    for d in range(dim_v):
        value = np.float32(total[d] * share)
        store(kv, at + d, min(max(value, -LARGEST), LARGEST))
    return True
