"""HostDevice: llama.cpp's cells lie in host memory."""

from __future__ import annotations

import numba
import numpy as np

from .._native import ffi
from ..half import copy, prefetch
from ..host_pages import HostPages

AHEAD = 12  # rows asked for before they are copied: hides the latency of main memory


class HostDevice:
    """One layer's cells in host memory, read and written in place.

    Attributes
    ----------
    k, v : uint16 arrays [n_cells, G, Dk] and [n_cells, G, Dv]
        f16 bits of llama.cpp's own tensors, not a copy. Where V is a part of K, Dv is 0 here
        and in the host tier.
    """

    def __init__(self, layer: ffi.CData) -> None:
        n, g = layer.n_cells, layer.n_kv_heads
        self.k = _view(layer.k_cells, (n, g, layer.dk))
        self.v = self.k[:, :, :0] if layer.v_in_k else _view(layer.v_cells, (n, g, layer.dv))

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's cells."""
        return self.k.nbytes + self.v.nbytes

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K rows, V rows, and the index of each of `cells` in them."""
        return self.k, self.v, cells

    def upload(
        self,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        n: np.ndarray,
    ) -> None:
        """Copy K and V rows from the host tier into cells.

        Parameters
        ----------
        pages : HostPages
        cells : int32 array [S]
            Cell of each slot.
        slots, places : int32 arrays [G, M]
            Destination slot and source place (page * 16 + row) of each row.
        n : int32 array [G]
            Rows to copy per KV head.
        """
        _upload(pages.kv.reshape(len(n), -1), slots, places, n, *self.upload_arrays(cells))

    def upload_arrays(self, cells: np.ndarray) -> tuple[tuple[object, ...], tuple[int, ...]]:
        """Where `upload_head` writes to: `cells` (int32 [S], of each slot), K, V; their shape."""
        shape = self.k.shape[1], self.k.shape[2], self.v.shape[2]
        return (cells, self.k.ravel(), self.v.ravel()), shape


def _view(address: ffi.CData, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.frombuffer(ffi.buffer(address, 2 * count), np.uint16).reshape(shape)


@numba.njit(cache=True, nogil=True)
def _prefetch_row(kv, base, row, dk, dv):
    """Ask for one token's K and V rows; 32 f16 elements are one cache line."""
    for d in range(0, dk, 32):
        prefetch(kv, base + row * dk + d)
    for d in range(0, dv, 32):
        prefetch(kv, base + 16 * dk + row * dv + d)


@numba.njit(cache=True, nogil=True)
def upload_head(pages, g, slots, places, n, target, shape):
    """Row by row; a row is contiguous on both sides, and rows lie scattered in memory."""
    cells, k, v = target
    heads, dk, dv = shape
    width = 16 * (dk + dv)
    for i in range(n + AHEAD):
        if i < n:
            base = np.int64(places[i] >> 4) * width
            _prefetch_row(pages, base, places[i] & 15, dk, dv)
        j = i - AHEAD
        if j >= 0:
            base, row = np.int64(places[j] >> 4) * width, places[j] & 15
            cell = np.int64(cells[slots[j]]) * heads + g
            copy(k, cell * dk, pages, base + row * dk, dk)
            copy(v, cell * dv, pages, base + 16 * dk + row * dv, dv)


@numba.njit(cache=True, nogil=True, parallel=True)
def _upload(kv, slots, places, n, target, shape):
    for g in numba.prange(n.shape[0]):
        upload_head(kv[g], np.int64(g), slots[g], places[g], np.int64(n[g]), target, shape)
