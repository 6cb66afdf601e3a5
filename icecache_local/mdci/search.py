"""Beam search from the root to the pages."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..half import FAST, ONE, ZERO, dot, exp_nonpositive, kernel, largest, prefetch, two_dots
from .best import take_best
from .layout import FAN_OUT, HEIGHT, N_CHILD, N_KEYS, N_NODES, NODE_SIZE, ROOT
from .sketch import LOWEST, sketch

LINE = 64  # bytes of a cache line
AHEAD = 64  # rows asked for before they are needed
FEW_NODES = 256  # asked for at once: on the way down, each level would wait for the last
LOG_FAN_OUT = np.float32(np.log(FAN_OUT))


@intrinsic
def _lowest_bit(typingctx, word):
    """Return the number of the lowest bit that is set in a word other than 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@kernel()
def _sort(numbers, n, marks):
    """Bring distinct `numbers[:n]` into rising order, through one bit each in `marks`.

    What is read in the order of its addresses arrives in half the time.
    """
    for i in range(n):
        word = numbers[i] >> 6
        marks[word] |= np.uint64(1) << np.uint64(numbers[i] & 63)
    m, word = ZERO, ZERO
    while m < n:
        bits, marks[word] = marks[word], np.uint64(0)
        while bits != 0:
            numbers[m] = (word << 6) + _lowest_bit(bits)
            bits &= bits - np.uint64(1)
            m += 1
        word += 1


@kernel(fastmath=FAST)
def _log_sum_exp(row, n):
    top, total = largest(row, ZERO, n), np.float32(0)
    for i in range(n):
        total += exp_nonpositive(row[i] - top)
    return top + np.log(total)


@kernel()
def _raise(worth, row, n, shift):
    """worth[:n] becomes the larger of itself and row[:n] - shift; NaN raises nothing."""
    for i in range(n):
        value = row[i] - shift
        worth[i] = value if value > worth[i] else worth[i]


@kernel()
def _weigh(scores, n, totals):
    """Put the largest of a cluster's log weights over the group into the last row of `scores`.

    `totals` [group] receives what turns the scores of a head into logarithms of softmax weights.
    Their sum would say the same up to a factor of two, but for weights too small for f32;
    without the softmax, the head with the flattest scores would choose alone.
    """
    group = scores.shape[0] - 1
    scores[group, :n] = LOWEST
    for r in range(group):
        totals[r] = _log_sum_exp(scores[r], n)
        _raise(scores[group], scores[r], n, totals[r])


@kernel()
def _ask(means, scales, spreads, number, dim):
    """Prefetch what is known of cluster `number`."""
    row = np.int64(number)
    prefetch(scales, row)
    prefetch(spreads, row)
    for d in range(0, dim, LINE):
        prefetch(means, row * dim + d)


@kernel()
def _score(means, scales, spreads, rows, n, log_keys, q, dim, space):
    """Estimate, per query, the logarithm of the mean of exp(q.k) over the keys of rows[:n].

    For Gaussian keys of mean c and covariance v it is q.c + q.v.q / 2: the second term, from
    `unit_spread`, finds a cluster in which one key stands out, as retrieving heads need. Of
    exp(log_keys) keys the largest is only so far above the mean; beyond that the estimate grows
    as it does (Derrida's random energy model, doi 10.1103/PhysRevB.24.2613).

    The rows lie all over the memory, and waiting for them takes longer than all else.
    """
    group = space.unit_spread.shape[0]
    for i in range(min(n, AHEAD)):
        _ask(means, scales, spreads, rows[i], dim)
    for i in range(n):
        if i + AHEAD < n:
            _ask(means, scales, spreads, rows[i + AHEAD], dim)
        row = np.int64(rows[i])
        at, scale = row * dim, scales[row]
        space.work[i] = spreads[row]
        for r in range(0, group - 1, 2):
            a, b = two_dots(means, at, q, r * dim, (r + 1) * dim, dim)
            space.centers[r, i], space.centers[r + 1, i] = a * scale, b * scale
        if group & 1:
            space.centers[group - 1, i] = dot(means, at, q, (group - 1) * dim, dim) * scale
    for r in range(group):
        unit = space.unit_spread[r]
        _add_spread(space.scores[r], space.centers[r], space.work, n, unit, log_keys)


@kernel(fastmath=FAST)
def _add_spread(scores, centers, spreads, n, unit, log_keys):
    """Turn q.c into the estimate of `_score`."""
    for i in range(n):
        spread = unit * spreads[i]
        beyond = np.float32(2) * np.sqrt(log_keys * spread) - log_keys
        scores[i] = centers[i] + (beyond if spread > log_keys else spread)


@kernel()
def _set_unit_spread(t, q, dim, unit_spread):
    """Half the variance of q.k in a cluster whose variances sum to 1, per query.

    Clusters differ in size much more than in shape: all take the shape of `profile`.
    """
    total = dot(t.profile, ZERO, t.profile, ZERO, dim)
    for r in range(unit_spread.shape[0]):
        weighted = np.float32(0)
        for d in range(dim):
            away = q[r * dim + d] * t.profile[d]
            weighted += away * away
        unit_spread[r] = np.float32(0.5) * weighted / total if total > 0 else np.float32(0)


@kernel()
def _log_add(a, b):
    """Logarithm of exp(a) + exp(b)."""
    high, low = max(a, b), min(a, b)
    return high + np.log(np.float32(1) + np.exp(low - high)) if low > LOWEST else high


@kernel(fastmath=FAST)
def _mass(scores, keys, n, total):
    """Sum of keys * exp(scores - total) over the first n."""
    mass = np.float32(0)
    for i in range(n):
        mass += keys[i] * exp_nonpositive(scores[i] - total)
    return mass


@kernel()
def _count_dropped(t, nodes, n, picked, n_picked, log_mass, space):
    """Add the mass that nodes[:n] not in picked[:n_picked] seem to hold."""
    for i in range(n):
        space.work[i] = t.node[nodes[i], N_KEYS]
    for i in range(n_picked):
        space.work[picked[i]] = 0
    for r in range(log_mass.shape[0]):
        mass = _mass(space.scores[r], space.work, n, space.totals[r])
        log_mass[r] = _log_add(log_mass[r], space.totals[r] + np.log(mass))


@kernel()
def search(t, q, dim, beam, n_best, found, log_mass, space):
    """Find the tokens that promise the most attention, summed over the group of queries.

    Beam search finds pages, `sketch` compares their tokens.

    Parameters
    ----------
    q : float32 array [group * dim]
        Queries times the softmax's scale.
    beam : int
        Nodes kept per level (the field of view).
    n_best : int
        Pages whose tokens are compared; more if these hold fewer than C.
    found : int32 array [C]
        Receives row numbers, then -1.
    log_mass : float32 array [group]
        Receives the logarithm of the sum of exp(q.k) over all tokens, as far as can be guessed.
    space : SearchSpace
        Work space of this head; `values` begins with the estimates of `found`.
    """
    found[:] = -1
    log_mass[:] = LOWEST
    if t.meta[ROOT] < 0:
        return
    nodes, pages, picked, work = space.nodes, space.pages, space.picked, space.work
    scores = space.scores
    group, n_least = log_mass.shape[0], np.int64(found.shape[0])
    worth = scores[group]
    for node in range(min(np.int64(t.meta[N_NODES]), FEW_NODES)):
        prefetch(t.node, node * NODE_SIZE)
        _ask(t.node_q, t.node_scale, t.node_spread, node, dim)
    _set_unit_spread(t, q, dim, space.unit_spread)
    nodes[0] = t.meta[ROOT]
    picked[0] = 0
    n_beam, n = ONE, ZERO
    for level in range(t.meta[HEIGHT], 0, -1):
        for i in range(n_beam):
            pages[i] = nodes[picked[i]]
            prefetch(t.node, pages[i] * NODE_SIZE)
        n = ZERO
        for i in range(n_beam):
            for j in range(t.node[pages[i], N_CHILD]):
                nodes[n] = t.node[pages[i], j]
                n += 1
        if level == 1:
            _sort(nodes, n, space.marks)
        if level > 1:
            stored = t.node_q, t.node_scale, t.node_spread
        else:
            stored = t.page_c, t.page_scale, t.page_spread
        log_keys = np.float32(level * LOG_FAN_OUT)
        _score(*stored, nodes, n, log_keys, q, dim, space)
        if level == 1 or n > beam:
            _weigh(scores, n, space.totals)
        if level > 1:
            n_beam = take_best(worth, nodes, n, beam, picked, work)
            if n > n_beam:
                _count_dropped(t, nodes, n, picked, n_beam, log_mass, space)
    for r in range(group):  # nearly all pages are full
        log_mass[r] = _log_add(log_mass[r], space.totals[r] + LOG_FAN_OUT)
    n_pages, n_held = ZERO, 0
    while n_pages < n and (n_pages == 0 or n_held < n_least):
        wanted = n_best if n_pages == 0 else n_pages + (n_least - n_held + 15) // 16
        n_pages = take_best(worth, nodes, n, wanted, picked, work)
        n_held = 0
        for i in range(n_pages):
            n_held += t.fill[nodes[picked[i]]]
    for i in range(n_pages):
        pages[i] = nodes[picked[i]]
        for r in range(group):  # picked[i] >= i: nothing is overwritten too early
            space.centers[r, i] = space.centers[r, picked[i]]
    sketch(t, q, dim, n_pages, log_mass, space)
    n_rows, taken, m = FAN_OUT * n_pages, space.taken, ZERO
    for i in range(take_best(space.values, space.numbers, n_rows, n_least, taken, space.copies)):
        found[m] = pages[taken[i] >> 4] * FAN_OUT + (taken[i] & 15)
        value = space.values[taken[i]]
        space.values[m] = value  # taken[i] >= i >= m: nothing is overwritten too early
        m += value > -np.inf
    found[m:] = -1
