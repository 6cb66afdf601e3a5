"""TailRing: a layer's newest tokens, in order, before the index takes them."""

from __future__ import annotations

import numba
import numpy as np

from .config import PAGE
from .host_pages import HostPages


class TailRing:
    """Pages of the host tier that are filled in a circle, the same ones for every KV head.

    Parameters
    ----------
    pages : HostPages
    first_page, end_page : int
        The ring is [first_page, end_page).
    sink : int
        First tokens of the sequence, which lie in the pages before the ring for ever.

    Attributes
    ----------
    start : int
        Position of its oldest token.
    row : int
        Where that lies, counted from the ring's first row; always the first of a page.
    """

    def __init__(self, pages: HostPages, first_page: int, end_page: int, sink: int) -> None:
        self.first_page, self.end_page = first_page, end_page
        self._pages, self._sink = pages, sink
        self.begin(sink)

    @property
    def n_rows(self) -> int:
        """Rows of the ring."""
        return (self.end_page - self.first_page) * PAGE

    def begin(self, position: int) -> None:
        """Begin anew, empty, with the token at `position` to come."""
        pages, ring = self._pages, slice(self.first_page, self.end_page)
        pages.fill[:, ring] = 0
        pages.ids[:, ring] = 0
        np.maximum(pages.n_pages, self.end_page, out=pages.n_pages)
        self.start, self.row = position, 0

    def pages_of(self, n_tokens: int) -> np.ndarray:
        """Pages of the oldest `n_tokens`, in their order; int32 [ceil(n_tokens / PAGE)]."""
        pages = np.arange(-(-n_tokens // PAGE), dtype=np.int32) + self.row // PAGE
        return self.first_page + pages % (self.end_page - self.first_page)

    def place(self, position: int) -> int:
        """Place in the host tier of the token at `position`."""
        return self.first_page * PAGE + (self.row + position - self.start) % self.n_rows

    def append(self, k: np.ndarray, v: np.ndarray, rows: np.ndarray, position: int) -> None:
        """Copy tokens to the host tier, those of the sink to the pages before the ring.

        Parameters
        ----------
        k, v : uint16 arrays [n, G, Dk] and [n, G, Dv]
        rows : int64 array [T]
            Which of the n rows, in the order of the tokens.
        position : int
            Of the first of them.
        """
        _append(
            *(k, v, rows, position, self._sink),
            *(self.first_page, self.n_rows, self.row - self.start),
            *(self._pages.kv, self._pages.ids, self._pages.fill),
        )

    def release(self, pages: np.ndarray) -> None:
        """Empty the oldest pages (int32 [n], full ones)."""
        self._pages.fill[:, pages] = 0
        self._pages.ids[:, pages] = 0
        self.start += len(pages) * PAGE
        self.row = (self.row + len(pages) * PAGE) % self.n_rows

    def cut(self, n_tokens: int, n_left: int) -> None:
        """Drop the tokens at positions >= `n_left` of a sequence of `n_tokens`."""
        used = self.pages_of(n_tokens - self.start)
        ids = self._pages.ids[:, used]
        ids[ids > n_left] = 0
        self._pages.ids[:, used] = ids
        self._pages.fill[:, used] = np.count_nonzero(ids, axis=2)


@numba.njit(cache=True, nogil=True)
def _append(k, v, rows, position, sink, first_page, n_rows, offset, kv, ids, fill):
    """Copy `rows` of K and V, all heads, to the places of `position` and the ones after it."""
    dk, dv = k.shape[2], v.shape[2]
    for i in range(rows.shape[0]):
        if position + i < sink:
            place = position + i
        else:
            place = first_page * 16 + (offset + position + i) % n_rows
        page, row = place >> 4, place & 15
        for g in range(k.shape[1]):
            target = kv[g, page]
            target[row * dk : (row + 1) * dk] = k[rows[i], g]
            target[16 * dk + row * dv : 16 * dk + (row + 1) * dv] = v[rows[i], g]
            ids[g, page, row] = position + i + 1
            fill[g, page] = row + 1
