"""Gathering of host-tier rows into contiguous staging memory, in parallel."""

from __future__ import annotations

import numba
import numpy as np

PIECE = 256  # rows that one thread takes at a time


@numba.njit(cache=True, nogil=True, parallel=True)
def stage_rows(kv, cells, slots, places, heads, columns, target, k_rows, v_rows):
    """Gather single rows: row i is place `places[g, j]` of head g = heads[i], j = columns[i].

    Parameters
    ----------
    kv : uint16 array [G, P, 16 * (Dk + Dv)]
    cells : int32 array [S]
    slots, places : int32 arrays [G, M]
    heads, columns : int32 arrays [n]
    target : int32 array [n]
        Out: cell * G + head of each row.
    k_rows, v_rows : uint16 arrays [n, Dk] and [n, Dv]
        Out.
    """
    dk, dv, n_heads = k_rows.shape[1], v_rows.shape[1], kv.shape[0]
    for i in numba.prange(len(heads)):
        g, j = heads[i], columns[i]
        page, row = kv[g, places[g, j] >> 4], places[g, j] & 15
        target[i] = cells[slots[g, j]] * n_heads + g
        k_rows[i] = page[row * dk : (row + 1) * dk]
        v_rows[i] = page[16 * dk + row * dv : 16 * dk + (row + 1) * dv]


@numba.njit(cache=True, nogil=True, parallel=True)
def stage_block(kv, fill, ends, first, n_columns, k_rows, v_rows, n_keys):
    """Gather one block of keys per head, whose pages may hold any number of rows.

    Parameters
    ----------
    kv : uint16 array [G, P, 16 * (Dk + Dv)]
    fill : int32 array [G, P]
        Rows of each page that count; they are its first ones.
    ends : int32 array [G, P]
        Running sum of `fill`.
    first, n_columns : int
        Rows [first, first + n_columns) of each head, in the order of the pages.
    k_rows, v_rows : uint16 arrays [G, B, Dk] and [G, B, Dv]
        Out: the rows; those behind the last one are zero, up to `n_columns`.
    n_keys : int32 array [G]
        Out: rows of each head.
    """
    n_heads, n_pages = fill.shape
    dk, dv = k_rows.shape[2], v_rows.shape[2]
    for g in range(n_heads):
        n_keys[g] = max(0, min(n_columns, ends[g, n_pages - 1] - first))
        k_rows[g, n_keys[g] : n_columns] = 0
        v_rows[g, n_keys[g] : n_columns] = 0
    n_pieces = -(-n_columns // PIECE)
    for job in numba.prange(n_heads * n_pieces):
        g, piece = job // n_pieces, job % n_pieces
        row = piece * PIECE
        stop = min(n_keys[g], row + PIECE)
        page = np.searchsorted(ends[g], first + row, side="right")
        while row < stop:
            start = first + row - (ends[g, page] - fill[g, page])
            count = min(fill[g, page] - start, stop - row)
            source = kv[g, page]
            k, v = source[start * dk :], source[16 * dk + start * dv :]
            for i in range(count):
                k_rows[g, row + i] = k[i * dk : (i + 1) * dk]
                v_rows[g, row + i] = v[i * dv : (i + 1) * dv]
            row += count
            page += 1
