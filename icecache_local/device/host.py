"""HostDevice: llama.cpp's cells lie in host memory."""

from __future__ import annotations

import numba
import numpy as np

from .._native import ffi
from ..attention import Attention
from ..half import copy, prefetch
from ..host_pages import HostPages
from .base import Device, Rows

AHEAD = 12  # rows asked for before they are copied: hides the latency of main memory


class HostDevice(Device):
    """One layer's cells in host memory, read and written in place.

    Parameters
    ----------
    layer : ice_layer
        The layer that owns the cells.
    attention : Attention
        Exact attention on the CPU.

    Attributes
    ----------
    k, v : uint16 arrays [n_cells, G, Dk] and [n_cells, G, Dv]
        f16 bits of llama.cpp's own tensors, not a copy. Where V is a part of K, Dv is 0 here
        and in the host tier.
    """

    in_place = True

    def __init__(self, layer: ffi.CData, attention: Attention) -> None:
        self._attention = attention
        n, g = layer.n_cells, layer.n_kv_heads
        self.k = _view(layer.k_cells, (n, g, layer.dk))
        self.v = self.k[:, :, :0] if layer.v_in_k else _view(layer.v_cells, (n, g, layer.dv))

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of one cell's K and V; see `Device.row_bytes`."""
        return self.k[:1].nbytes, self.v[:1].nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's cells."""
        return self.k.nbytes + self.v.nbytes

    def rows(self, cells: np.ndarray) -> Rows:
        """Return views of all cells; see `Device.rows`."""
        return self.k, self.v, cells

    def upload(
        self,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        n: np.ndarray,
    ) -> None:
        """Copy rows into the cells; see `Device.upload`."""
        _upload(pages.kv.reshape(len(n), -1), slots, places, n, *self.upload_arrays(cells))

    def upload_arrays(self, cells: np.ndarray) -> tuple[tuple[object, ...], tuple[int, ...]]:
        """Where `upload_head` writes to: `cells` (int32 [S], of each slot), K, V; their shape."""
        shape = self.k.shape[1], self.k.shape[2], self.v.shape[2]
        return (cells, self.k.ravel(), self.v.ravel()), shape

    def queries(self, layer: ffi.CData) -> np.ndarray:
        """View of the queries; see `Device.queries`."""
        shape = (layer.n_tokens, layer.n_heads, layer.dk)
        size = (shape[0] - 1) * layer.q_token + (shape[1] - 1) * layer.q_head + 4 * shape[2]
        strides = (layer.q_token, layer.q_head, 4)
        return np.ndarray(shape, np.float32, ffi.buffer(layer.q, size), strides=strides)

    def attend(
        self, layer: ffi.CData, pages: HostPages, cells: np.ndarray, fill: np.ndarray | None
    ) -> None:
        """Attend on the CPU, in place; see `Device.attend`."""
        self._attention.run(layer, pages, cells, fill)


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
