"""The remainder: one row per KV head that stands for the tokens which were scored and not chosen.

A softmax over the chosen tokens alone gives them the attention of all others too. One more key and
value make up for that. The rest are the candidates that were scored exactly and not chosen: nothing
is estimated, and no further key is read. The value v is the mean of some of their values, drawn as
often as they weigh in the whole group of query heads; weighed for query r alone the same ones have
the mean v_r. The key is the least one with, in the sense of least squares,

    scale * q_r . k = log(a_r * sum over the rest of exp(scale * q_r . k_i))
    a_r = 2 v . v_r / (v . v + v_r . v_r), at least 0

so that the row weighs little for a query to which these tokens say something else than to the
group. docs/results.md tells what it brings.
"""

from __future__ import annotations

import numpy as np

from .half import FAST, ZERO, accumulate, dot, kernel, prefetch, store, total_of
from .mdci.cluster import row_start

LARGEST = np.float32(65504)  # f16
LEAST_SHARE = np.float32(1e-6)  # of a query's attention: less makes no difference
RIDGE = np.float32(1e-4)  # of the mean squared query: parallel queries that want different things
# Values to draw: some, and more the larger the share of the attention for which they stand.
DRAWS, MORE_DRAWS = np.float32(64), np.float32(512)
_LINE = 32  # f16 elements of a cache line


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
def _draw(weights, n, n_draws, drawn, times):
    """Draw `n_draws` of `n` rows, each as often as it weighs (systematic sampling).

    If there are no more rows than that, each of them counts exactly. Returns how many differ;
    `drawn` and `times` tell which, and how much each counts.
    """
    n_drawn = ZERO
    if n <= n_draws:
        for i in range(n):
            if weights[i] > 0:
                drawn[n_drawn], times[n_drawn] = i, weights[i]
                n_drawn += 1
        return n_drawn
    step = total_of(weights, ZERO, n) / n_draws
    if not step > 0:
        return ZERO
    edge, seen = step / 2, np.float32(0)
    for i in range(n):
        seen += weights[i]
        if seen > edge:
            count = np.floor((seen - edge) / step) + 1
            edge += count * step
            drawn[n_drawn], times[n_drawn] = i, count
            n_drawn += 1
    return n_drawn


@kernel(inline="always")
def _value_start(row, dim, dim_v):
    """Index of the first element of a row's value; `row_start` is that of its key."""
    return row_start(row, 16 * (dim + dim_v), dim_v) + 16 * dim


@kernel()
def _ask_values(kv, rows, drawn, n, dim, dim_v):
    """Prefetch the values of the rows drawn."""
    for i in range(n):
        start = _value_start(rows[drawn[i]], dim, dim_v)
        for d in range(0, dim_v, _LINE):
            prefetch(kv, start + d)


@kernel()
def _put_mean(kv, rows, drawn, times, n, dim, means, which):
    """means[which] is the mean of the values of the `n` rows drawn, each counted `times`."""
    dim_v, total = means.shape[1], total_of(times, ZERO, n)
    flat, share = means.reshape(means.size), np.float32(1) / total if total > 0 else np.float32(0)
    means[which] = 0
    for i in range(n):
        start = _value_start(rows[drawn[i]], dim, dim_v)
        accumulate(flat, np.int64(which * dim_v), kv, start, dim_v, times[i] * share)


@kernel()
def _agreement(means, r):
    """How far means[1 + r] is means[0]: 1 the same, 0 not at all."""
    flat, dim = means.reshape(means.size), means.shape[1]
    at = np.int64((1 + r) * dim)
    both = dot(flat, ZERO, flat, ZERO, dim) + dot(flat, at, flat, at, dim)
    shared = 2 * dot(flat, ZERO, flat, at, dim)
    return shared / both if shared > 0 else np.float32(0)


@kernel()
def write_remainder(kv, page, q, scale, scores, weights, rows, n, space):
    """Write the remainder's key and value into the first row of a page.

    Parameters
    ----------
    kv : uint16 array [P * 16 * (Dk + Dv)]
    page : int
    q : float32 array [group * Dk]
    scale : float32
    scores : float32 array [>= group, >= n]
        exp(logit - top) of the tokens that are left, 0 for others; overwritten.
    weights : float32 array [>= n]
        The sum over the group of their softmax weights, 0 for others.
    rows : int32 array [>= n]
        Row numbers.
    n : int
    space : tuple of arrays
        gram, float32 [group, group + 3], whose last columns hold each query's top, the sum of all
        its exp(logit - top), and what tokens that were not scored would add to that; they are
        overwritten; to work in, int32 and float32 [>= n], float32 [1 + group, Dv].

    Returns
    -------
    bool
        False if there is no such row: every query is 0, or all others weigh nothing.
    """
    gram, drawn, times, means = space
    group, dim_v = gram.shape[0], means.shape[1]
    dim = q.shape[0] // group
    trace, most = np.float32(0), np.float32(0)
    for r in range(group):
        for s in range(r + 1):
            gram[r, s] = scale * scale * dot(q, np.int64(r * dim), q, np.int64(s * dim), dim)
        trace += gram[r, r]
        mass = gram[r, group + 1]
        share = (total_of(scores[r], ZERO, n) + gram[r, group + 2]) / mass
        gram[r, group], gram[r, group + 1] = gram[r, group] + np.log(mass), share
        most = max(most, share)
    if not trace > 0:
        return False
    n_drawn = _draw(weights, n, np.floor(DRAWS + MORE_DRAWS * most), drawn, times)
    if n_drawn == 0:
        return False
    _ask_values(kv, rows, drawn, n_drawn, dim, dim_v)
    _put_mean(kv, rows, drawn, times, n_drawn, dim, means, 0)
    for r in range(group):
        for i in range(n_drawn):  # i <= drawn[i]: nothing is overwritten too early
            scores[r, i] = times[i] * scores[r, drawn[i]] / weights[drawn[i]]
        _put_mean(kv, rows, drawn, scores[r], n_drawn, dim, means, 1 + r)
        share = gram[r, group + 1] * _agreement(means, r)
        gram[r, group] += np.log(max(share, LEAST_SHARE))
        gram[r, r] += RIDGE * trace / np.float32(group)
    _solve(gram, group)
    at = page * 16 * (dim + dim_v)
    for d in range(dim):
        value = np.float32(0)
        for r in range(group):
            value += scale * gram[r, group] * q[r * dim + d]
        store(kv, at + d, min(max(value, -LARGEST), LARGEST))
    at += 16 * dim
    for d in range(dim_v):
        value = means[0, d] if means[0, d] == means[0, d] else np.float32(0)
        store(kv, at + d, min(max(value, -LARGEST), LARGEST))
    return True
