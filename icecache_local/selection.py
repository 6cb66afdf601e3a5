"""From candidates to the tokens that become resident."""

from __future__ import annotations

import numpy as np
from numba import prange

from .config import PAGE, ModelShape
from .half import FAST, ZERO, dot, exp_nonpositive, kernel, largest, prefetch, total_of, two_dots
from .host_pages import HostPages
from .mdci.best import take_best
from .mdci.cluster import row_start
from .mdci.errors import IndexInputError, TooFewTokensError
from .remainder import write_remainder

_LINE = 32  # f16 elements of a cache line
_AHEAD = 32  # rows asked for before they are needed


class Selector:
    """Chooses, per KV head, the tokens that its group of query heads attends to most.

    A token's worth is the sum over the group of its softmax weights: keeping the largest sums
    keeps the most attention mass that any choice of the same size can, for a whole group and
    exactly so. The softmax runs over all tokens seen, those included that are resident anyway,
    so that a head that looks at little else but the sink has little say.

    Parameters
    ----------
    pages : HostPages
    shape : ModelShape
    n_slots : int
        Tokens to choose per KV head, at least 1.
    rest_page : int
        A page whose first row may be written, see `remainder`; -1: none.

    Attributes
    ----------
    weights : float32 array [G, n_slots]
        Attention mass of each chosen token, summed over the group, after `select`.
    rest : int32 array [G]
        Place of the remainder's row, which should be resident instead of the last chosen token;
        that is then the one with the least mass. -1 where there is none: every token that was
        scored is chosen, or the others weigh nothing.
    unread : float32 array [G]
        To be set before `select`: attention to tokens that were left out of the candidates, as a
        part of that to the candidates. The remainder stands for them too.
    """

    def __init__(
        self,
        pages: HostPages,
        shape: ModelShape,
        n_slots: int,
        rest_page: int = -1,
    ) -> None:
        if n_slots < 1:
            raise IndexInputError(f"n_slots is {n_slots}; at least 1 token must be chosen.")
        self.pages, self.shape, self.n_slots = pages, shape, n_slots
        heads = shape.n_kv_heads
        self.tokens = np.zeros((heads, n_slots), np.int32)
        self.places = np.zeros((heads, n_slots), np.int32)
        self.weights = np.zeros((heads, n_slots), np.float32)
        self.rest = np.full(heads, -1, np.int32)
        self.rest_page = rest_page
        self._seen = np.zeros((heads, 2), np.int32)
        self.unread = np.zeros(heads, np.float32)
        self._gram = np.zeros((heads, shape.group, shape.group + 3), np.float32)
        self._means = np.zeros((heads, 1 + shape.group, shape.head_dim_v), np.float32)
        self._unknown = np.full(shape.n_heads, -np.inf, np.float32)
        self._reserve(PAGE)

    def _reserve(self, n_rows: int) -> None:
        heads = self.shape.n_kv_heads
        self._int = np.zeros((heads, 3, n_rows), np.int32)
        self._float = np.zeros((heads, self.shape.group + 2, n_rows), np.float32)

    def select(
        self,
        q: np.ndarray,
        scale: float,
        candidates: np.ndarray,
        tail_pages: np.ndarray,
        forced_from: int,
        excluded_from: int,
        n_sink_pages: int = 0,
        log_mass: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose `n_slots` distinct tokens per KV head.

        Parameters
        ----------
        q : float32 array [H, Dk]
        scale : float
            Factor of q.k in the softmax.
        candidates : int32 array [G, C]
            Places to choose from, -1 where there are no more; see `MDCIndex.query`. Their
            tokens are older than those of the tail.
        tail_pages : int32 array [n]
            Pages to choose from too, the same for all heads; the first holds the oldest token.
        forced_from, excluded_from : int
            Positions from `forced_from` on are chosen whatever they weigh; positions from
            `excluded_from` on are resident elsewhere and are never chosen.
        n_sink_pages : int
            Pages [0, n_sink_pages) hold the sink: they count in the softmax only.
        log_mass : float32 array [H], optional
            Logarithm of the sum of exp(scale * q.k) over all tokens that the candidates come
            from, see `MDCIndex.log_mass`. Without it, those that are no candidates count for
            nothing, which favours the head of a group that looks at many tokens.

        Returns
        -------
        tokens : int32 array [G, n_slots]
            Positions.
        places : int32 array [G, n_slots]
            page * 16 + offset in `HostPages`. The same two arrays at every call.

        Raises
        ------
        IndexInputError
            Wrong dtype or shape.
        TooFewTokensError
            There are fewer tokens than `n_slots`, or more of them are forced.
        """
        shape = self.shape
        heads, dim = shape.n_kv_heads, shape.head_dim_k
        if q.dtype != np.float32 or q.shape != (shape.n_heads, dim):
            raise IndexInputError(
                f"q is {q.dtype} {list(q.shape)}; it must be a float32 array "
                f"[{shape.n_heads}, {dim}]."
            )
        if candidates.dtype != np.int32 or candidates.ndim != 2 or len(candidates) != heads:
            raise IndexInputError(
                f"candidates is {candidates.dtype} {list(candidates.shape)}; it must be an "
                f"int32 array [{heads}, C]."
            )
        if tail_pages.dtype != np.int32 or tail_pages.ndim != 1:
            raise IndexInputError(
                f"tail_pages is {tail_pages.dtype} {list(tail_pages.shape)}; it must be an "
                "int32 array [n]."
            )
        self.reserve_for(candidates.shape[1], len(tail_pages), n_sink_pages)
        pages, (chosen, work) = self.pages, self.arrays
        _select_all(
            (pages.kv.reshape(heads, -1), pages.ids, pages.fill),
            q.reshape(heads, shape.group * dim),
            np.float32(scale),
            candidates,
            (self._unknown if log_mass is None else log_mass).reshape(heads, -1),
            tail_pages,
            (forced_from, excluded_from, n_sink_pages, dim, self.rest_page),
            chosen,
            work,
        )
        self.check()
        return self.tokens, self.places

    def reserve_for(self, n_candidates: int, n_tail_pages: int, n_sink_pages: int) -> None:
        """Have enough work space for a `select` of this size."""
        n_rows = n_candidates + PAGE * (n_tail_pages + n_sink_pages)
        if n_rows > self._int.shape[2]:
            self._reserve(n_rows)

    @property
    def arrays(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """What `select_head` writes: its results and its work space."""
        chosen = self.tokens, self.places, self.weights, self._seen, self.rest
        return chosen, (self._int, self._float, self._gram, self._means, self.unread)

    def check(self) -> None:
        """Raise TooFewTokensError where the last selection could not fill the slots."""
        if self._seen[:, 0].min() < self.n_slots or self._seen[:, 1].max() > self.n_slots:
            head = int(np.argmax(np.maximum(self.n_slots - self._seen[:, 0], self._seen[:, 1])))
            open_, forced = self._seen[head]
            raise TooFewTokensError(
                f"KV head {head}: {self.n_slots} tokens are to be chosen from {open_}, of which "
                f"{forced} are forced; pass more candidates or use fewer slots."
            )


@kernel(fastmath=FAST)
def _exponentials(row, n):
    """Put exp(x - top) for the x of row[:n], top the largest of them; (top, sum)."""
    top, total = largest(row, ZERO, n), np.float32(0)
    for i in range(n):
        row[i] = exp_nonpositive(row[i] - top)
        total += row[i]
    return top, total


@kernel(fastmath=FAST)
def _add_scaled(target, row, n, share):
    """target[:n] += share * row[:n]."""
    for i in range(n):
        target[i] += share * row[i]


@kernel()
def _make_orderable(values, n):
    """Turn the NaN of NaN queries into 0."""
    for i in range(n):
        if not values[i] >= 0:
            values[i] = 0


@kernel()
def _ask(kv, row, width, dim):
    """Prefetch the key of row number `row`."""
    at = row_start(row, width, dim)
    for d in range(0, dim, _LINE):
        prefetch(kv, at + d)


@kernel()
def _list_rows(fill, candidates, tail, n_sink_pages, rows):
    """Fill `rows` with the row numbers of candidates, tail and sink; where each part ends."""
    n = ZERO
    while n < candidates.shape[0] and candidates[n] >= 0:
        rows[n] = candidates[n]
        n += 1
    n_found = n
    for page in tail:
        for i in range(fill[page]):
            rows[n] = page * 16 + i
            n += 1
    n_choice = n
    for page in range(n_sink_pages):
        for i in range(fill[page]):
            rows[n] = page * 16 + i
            n += 1
    return n_found, n_choice, n


@kernel()
def select_head(all_pages, g, q, scale, candidates, log_mass, tail, limits, chosen, space):
    """Choose for head `g`; `q` [G, group * Dk], `log_mass` [group], the others as for all."""
    kv, ids, fill = all_pages[0][g], all_pages[1][g], all_pages[2][g]
    tokens, places = chosen[0][g], chosen[1][g]
    weights, seen = chosen[2][g], chosen[3][g]
    rows, picked, scores = space[0][g, 0], space[0][g, 1], space[1][g]
    forced_from, excluded_from, n_sink_pages, dim, rest_page = limits
    width, group = kv.shape[0] // fill.shape[0], scores.shape[0] - 2
    rest, gram, unread = chosen[4], space[2][g], space[4][g]
    rest[g] = -1
    n_found, n_choice, n = _list_rows(fill, candidates[g], tail, n_sink_pages, rows)
    for i in range(min(n, _AHEAD)):
        _ask(kv, rows[i], width, dim)
    for i in range(n):
        if i + _AHEAD < n:
            _ask(kv, rows[i + _AHEAD], width, dim)
        at = row_start(rows[i], width, dim)
        # Written out as in `search._score`: one helper for both takes a tenth longer.
        for r in range(0, group - 1, 2):
            a, b = two_dots(kv, at, q[g], r * dim, (r + 1) * dim, dim)
            scores[r, i], scores[r + 1, i] = a * scale, b * scale
        if group & 1:
            scores[group - 1, i] = dot(kv, at, q[g], (group - 1) * dim, dim) * scale

    total, work = scores[group], scores[group + 1]
    total[:n] = 0
    for r in range(group):
        top, mass = _exponentials(scores[r], n)
        indexed = np.exp(min(log_mass[r] - top, np.float32(80)))
        found = total_of(scores[r], ZERO, n_found)
        gram[r, group], gram[r, group + 1], gram[r, group + 2] = top, mass, unread * found
        missed = indexed - found
        _add_scaled(total, scores[r], n, np.float32(1) / (mass + max(missed, np.float32(0))))
    _make_orderable(total, n)

    # Candidates are older than the tail, so that as a rule none is forced or excluded.
    oldest = ids[tail[0], 0] - 1 if tail.shape[0] > 0 else 16 * ids.shape[0]
    n_open = n_found if 0 < oldest <= min(forced_from, excluded_from) else ZERO
    n_out = ZERO
    for i in range(n_open, n_choice):
        row = np.int64(rows[i])
        position = ids[row >> 4, row & 15] - 1
        if position >= excluded_from:
            continue
        if position >= forced_from:
            if n_out < tokens.shape[0]:
                tokens[n_out], places[n_out], weights[n_out] = position, row, total[i]
            n_out += 1
        else:
            rows[n_open], total[n_open] = row, total[i]
            for r in range(group):
                scores[r, n_open] = scores[r, i]
            n_open += 1
    seen[0], seen[1] = n_out + n_open, n_out
    wanted = tokens.shape[0] - n_out
    if wanted <= 0:
        return
    n_best = take_best(total, rows, n_open, wanted, picked, work)
    has_rest = rest_page >= 0 and n_open > wanted
    if has_rest:
        _leave_least_for_last(total, picked, n_best)
    for i in range(n_best):
        prefetch(ids, np.int64(rows[picked[i]]))
        weights[n_out + i] = total[picked[i]]
    if has_rest:
        for i in range(n_best - 1):
            total[picked[i]] = 0
            for r in range(group):
                scores[r, picked[i]] = 0
        drawing = gram, space[0][g, 2], work, space[3][g]
        if write_remainder(kv, rest_page, q[g], scale, scores, total, rows, n_open, drawing):
            rest[g] = rest_page * 16
    for i in range(n_best):
        row = np.int64(rows[picked[i]])
        tokens[n_out], places[n_out] = ids[row >> 4, row & 15] - 1, row
        n_out += 1


@kernel()
def _leave_least_for_last(total, picked, n):
    least = ZERO
    for i in range(n):
        least = i if total[picked[i]] < total[picked[least]] else least
    picked[least], picked[n - 1] = picked[n - 1], picked[least]


@kernel(parallel=True)
def _select_all(all_pages, q, scale, candidates, log_mass, tail, limits, chosen, space):
    """Run `select_head` for every KV head; [G, ...] but for scale, log_mass, tail and limits."""
    for g in prange(candidates.shape[0]):
        select_head(
            *(all_pages, np.int64(g), q, scale, candidates, log_mass[g], tail),
            *(limits, chosen, space),
        )
