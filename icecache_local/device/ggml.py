"""GgmlDevice: llama.cpp's cells lie in a buffer of any of its backends."""

from __future__ import annotations

import numpy as np

from .. import ggml
from .._native import ffi
from ..attention import Attention
from ..host_pages import HostPages
from .base import Rows
from .host import HostDevice

# Clean cells between two dirty ones are sent along if they are fewer bytes than this: one
# transfer more takes as long as some tens of KiB over PCI Express.
GAP_BYTES = 64 << 10


class GgmlDevice(HostDevice):
    """One layer's cells in device memory, with a copy of them in host memory.

    Rows are gathered in the copy, and runs of changed cells are sent from it: a few transfers
    per layer, where one per row and head would be hundreds. The copy of a cell holds what the
    device holds once it was read or written here.

    Parameters
    ----------
    layer : ice_layer
        The layer that owns the cells.
    attention : Attention
        Exact attention on the CPU.
    """

    in_place = False  # what is written to the copy has to be sent

    def __init__(self, layer: ffi.CData, attention: Attention) -> None:
        n, g = layer.n_cells, layer.n_kv_heads
        self._attention = attention
        self.k = np.zeros((n, g, layer.dk), np.uint16)
        self.v = self.k[:, :, :0] if layer.v_in_k else np.zeros((n, g, layer.dv), np.uint16)
        tensors = [(layer.k_tensor, self.k)] if layer.v_in_k else [
            (layer.k_tensor, self.k),
            (layer.v_tensor, self.v),
        ]  # fmt: skip
        self._tensors = [(_number(tensor), copy) for tensor, copy in tensors]
        self._known = np.zeros(n, np.bool_)
        self._queries = np.empty(0, np.uint8)
        self._out = np.empty(0, np.uint8)

    def forget(self) -> None:
        """Read every cell again before the copy is trusted."""
        self._known[:] = False

    def rows(self, cells: np.ndarray) -> Rows:
        """Read cells; see `Device.rows`."""
        self._pull(cells)
        return self.k, self.v, cells

    def upload(
        self,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        n: np.ndarray,
    ) -> None:
        """Copy rows into the copy, then send the changed cells; see `Device.upload`."""
        valid = np.arange(slots.shape[1]) < n[:, None]
        dirty = np.unique(cells[slots[valid]])
        if len(dirty) == 0:
            return
        runs = runs_to_send(dirty, np.sort(cells), max(1, GAP_BYTES // max(self.row_bytes)))
        sent = np.concatenate([np.arange(first, last) for first, last in runs])
        self._pull(sent[~self._known[sent]])  # other heads' rows, and cells between
        super().upload(pages, cells, slots, places, n)
        for tensor, copy in self._tensors:
            for first, last in runs:
                part = copy[first:last]
                ggml.tensor_set(tensor, part.ctypes.data, first * copy.strides[0], part.nbytes)

    def queries(self, layer: ffi.CData) -> np.ndarray:
        """Read the queries; see `Device.queries`."""
        shape = (layer.n_tokens, layer.n_heads, layer.dk)
        strides = (layer.q_token, layer.q_head, 4)
        self._queries = _large_enough(self._queries, shape, strides)
        n_bytes = _span(shape, strides)
        ggml.tensor_get(_number(layer.q_tensor), self._queries.ctypes.data, 0, n_bytes)
        return np.ndarray(shape, np.float32, self._queries, strides=strides)

    def attend(
        self, layer: ffi.CData, pages: HostPages, cells: np.ndarray, fill: np.ndarray | None
    ) -> None:
        """Attend on the CPU and send the result; see `Device.attend`."""
        self._pull(cells)
        shape = (layer.n_tokens, layer.n_heads, layer.dv)
        strides = (layer.out_token, layer.out_head, 4)
        self._out = _large_enough(self._out, shape, strides)
        staged = ffi.new("ice_layer *", layer)
        staged.q = ffi.cast("float *", self.queries(layer).ctypes.data)
        staged.out = ffi.cast("float *", self._out.ctypes.data)
        staged.k_cells = ffi.cast("char *", self.k.ctypes.data)
        offset = ffi.cast("char *", layer.v_cells) - ffi.cast("char *", layer.k_cells)
        v = self.k.ctypes.data + offset if layer.v_in_k else self.v.ctypes.data
        staged.v_cells = ffi.cast("char *", v)
        sinks = np.empty(layer.n_heads, np.float32)
        if layer.sinks_tensor != ffi.NULL:
            ggml.tensor_get(_number(layer.sinks_tensor), sinks.ctypes.data, 0, sinks.nbytes)
            staged.sinks = ffi.cast("float *", sinks.ctypes.data)
        self._attention.run(staged, pages, cells, fill)
        n_bytes = _span(shape, strides)
        ggml.tensor_set(_number(layer.out_tensor), self._out.ctypes.data, 0, n_bytes)

    def _pull(self, cells: np.ndarray) -> None:
        """Bring `cells` into the copy, one transfer for each run of consecutive ones."""
        if len(cells) == 0:
            return
        self._known[cells] = True
        for run in np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1):
            first, last = int(run[0]), int(run[-1]) + 1
            for tensor, copy in self._tensors:
                part = copy[first:last]
                ggml.tensor_get(tensor, part.ctypes.data, first * copy.strides[0], part.nbytes)


def runs_to_send(dirty: np.ndarray, owned: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Find runs of consecutive cells that cover all dirty ones and none that is not owned.

    Parameters
    ----------
    dirty, owned : int arrays, ascending
        `dirty` is not empty and a part of `owned`.
    gap : int
        Most clean cells between two dirty ones of a run.

    Returns
    -------
    list of (first, last)
        Cells [first, last), disjoint and ascending.
    """
    place = np.searchsorted(owned, dirty)
    # Owned cells between two dirty ones are all the cells between them unless some are not owned.
    holes = np.diff(dirty) != np.diff(place)
    cuts = np.flatnonzero(holes | (np.diff(dirty) > gap + 1)) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(dirty, cuts)]


def _number(tensor: ffi.CData) -> int:
    return int(ffi.cast("intptr_t", tensor))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Bytes from the first element to the end of the last."""
    return 4 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _large_enough(
    buffer: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    size = _span(shape, strides)
    return buffer if buffer.size >= size else np.empty(size, np.uint8)
