"""CudaDevice: llama.cpp's cells lie in the memory of an NVIDIA GPU."""

from __future__ import annotations

import numpy as np

from .._native import ffi
from ..host_pages import HostPages
from .base import Device, Rows
from .gpu import COMPUTE, Gpu
from .staging import stage_rows
from .stream import StreamedAttention

THREADS = 256
PIECE_ROWS = 8192  # rows of one bulk copy; more than a decode step ever misses in a layer
# Events, beside those of StreamedAttention
PIECE_SENT, DONE = (5, 6), 7


class Transfers:
    """Staging memory of one GPU, shared by its layers: they take turns.

    Parameters
    ----------
    gpu : Gpu
    stream_limit : int
        Most bytes of VRAM for reading prompts; see `StreamedAttention`.
    """

    def __init__(self, gpu: Gpu, stream_limit: int) -> None:
        self.gpu = gpu
        self.attention = StreamedAttention(gpu, stream_limit)
        self._pinned: dict[int, np.ndarray] = {}
        self._memory: dict[int, object] = {}
        self._size: dict[int, int] = {}

    def reserve(self, half: int, n_bytes: int) -> tuple[np.ndarray, int]:
        """Pinned memory and the address of as much on the card, for one of two buffers.

        Nothing that uses the buffer may be under way.
        """
        if n_bytes > self._size.get(half, 0):
            self._memory.pop(half, None)  # give it back before asking for more
            self._memory[half] = self.gpu.allocate(n_bytes)
            self._pinned[half] = self.gpu.pinned(n_bytes)
            self._size[half] = n_bytes
        return self._pinned[half], self._memory[half].ptr

    def finish(self) -> None:
        """Wait until everything enqueued has run: llama.cpp's stream does not wait for ours."""
        self.gpu.record(DONE, COMPUTE)
        self.gpu.synchronize(DONE)


class CudaDevice(Device):
    """One layer's cells on a GPU; llama.cpp's own memory, used in place.

    The rows that a step misses are gathered by threads into pinned memory, sent in one copy and
    scattered by one kernel over K and V of all heads. New rows and the query come back in one.

    Parameters
    ----------
    layer : ice_layer
        The layer that owns the cells.
    transfers : Transfers
        Of the GPU that the cells lie on.
    """

    def __init__(self, layer: ffi.CData, transfers: Transfers) -> None:
        self._transfers, self._gpu = transfers, transfers.gpu
        self._heads, self._n_cells = layer.n_kv_heads, layer.n_cells
        self._dk, self._dv = layer.dk, 0 if layer.v_in_k else layer.dv
        self._k, self._v = _number(layer.k_cells), _number(layer.v_cells)

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of one cell's K and V; see `Device.row_bytes`."""
        return 2 * self._heads * self._dk, 2 * self._heads * self._dv

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's cells."""
        return self._n_cells * sum(self.row_bytes)

    def rows(self, cells: np.ndarray) -> Rows:
        """Gather cells on the card and fetch them in one copy; see `Device.rows`."""
        n, gpu = len(cells), self._gpu
        k_bytes, v_bytes = self.row_bytes
        start = _align(8 * n)
        total = start + n * (k_bytes + v_bytes)
        with gpu.active():
            pinned, memory = self._transfers.reserve(0, total)
            pinned[: 8 * n] = np.ascontiguousarray(cells, np.int64).view(np.uint8)
            gpu.to_device(memory, pinned, 8 * n, COMPUTE)
            target = memory + start
            for source, row in ((self._k, k_bytes), (self._v, v_bytes)):
                words = row // 16
                if words:
                    gpu.launch(
                        "gather_cells",
                        _grid(n * words),
                        THREADS,
                        *map(np.uint64, (source, memory)),
                        *map(np.int32, (n, words)),
                        np.uint64(target),
                    )
                target += n * row
            gpu.to_host(pinned[start:], memory + start, total - start, COMPUTE)
            self._transfers.finish()
        return *self._split(pinned[start:], n), np.arange(n)

    def newest(self, layer: ffi.CData, cells: np.ndarray) -> tuple[np.ndarray, Rows]:
        """Fetch query and rows in one copy; see `Device.newest`."""
        gpu, cell = self._gpu, int(cells[0])
        k_bytes, v_bytes = self.row_bytes
        q_bytes = 4 * layer.n_heads * layer.dk
        total = q_bytes + k_bytes + v_bytes
        with gpu.active():
            pinned, memory = self._transfers.reserve(0, total)
            spans = (
                (_number(layer.q), q_bytes),
                (self._k + cell * k_bytes, k_bytes),
                (self._v + cell * v_bytes, v_bytes),
            )
            args = [f(x) for at, n in spans for f, x in ((np.uint64, at), (np.int32, n // 16))]
            gpu.launch("concatenate", _grid(total // 16), THREADS, *args, np.uint64(memory))
            gpu.to_host(pinned, memory, total, COMPUTE)
            self._transfers.finish()
        q = pinned[:q_bytes].view(np.float32).reshape(layer.n_heads, layer.dk)
        return q, (*self._split(pinned[q_bytes:], 1), np.zeros(1, np.int64))

    def upload(
        self,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        n: np.ndarray,
    ) -> None:
        """Gather, copy and scatter rows; see `Device.upload`."""
        heads, columns = np.nonzero(np.arange(slots.shape[1]) < n[:, None])
        heads, columns = heads.astype(np.int32), columns.astype(np.int32)
        if len(heads) == 0:
            return
        with self._gpu.active():
            for piece, first in enumerate(range(0, len(heads), PIECE_ROWS)):
                part = slice(first, first + PIECE_ROWS)
                chosen = (cells, slots, places, heads[part], columns[part])
                self._upload(piece % 2, pages, *chosen)
            self._transfers.finish()

    def _upload(
        self,
        half: int,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        heads: np.ndarray,
        columns: np.ndarray,
    ) -> None:
        """Enqueue one piece; the CPU gathers it while the piece before is on its way."""
        n, gpu = len(heads), self._gpu
        start = _align(4 * n)
        v_start = start + 2 * n * self._dk
        total = v_start + 2 * n * self._dv
        gpu.synchronize(PIECE_SENT[half])
        pinned, memory = self._transfers.reserve(half, total)
        target = pinned[: 4 * n].view(np.int32)
        k_rows = pinned[start:v_start].view(np.uint16).reshape(n, self._dk)
        v_rows = pinned[v_start:total].view(np.uint16).reshape(n, self._dv)
        stage_rows(pages.kv, cells, slots, places, heads, columns, target, k_rows, v_rows)
        gpu.to_device(memory, pinned, total, COMPUTE)
        words = (self._dk + self._dv) // 8
        gpu.launch(
            "scatter_rows",
            _grid(n * words),
            THREADS,
            *map(np.uint64, (memory + start, memory + v_start, memory)),
            *map(np.int32, (n, self._dk // 8, self._dv // 8)),
            *map(np.uint64, (self._k, self._v)),
        )
        gpu.record(PIECE_SENT[half], COMPUTE)

    def queries(self, layer: ffi.CData) -> np.ndarray:
        """Fetch the queries; see `Device.queries`."""
        shape = (layer.n_tokens, layer.n_heads, layer.dk)
        strides = (layer.q_token, layer.q_head, 4)
        total = 4 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        with self._gpu.active():
            pinned, _ = self._transfers.reserve(1, total)
            self._gpu.to_host(pinned, _number(layer.q), total, COMPUTE)
            self._transfers.finish()
        return np.ndarray(shape, np.float32, pinned.data, strides=strides)

    def attend(
        self, layer: ffi.CData, pages: HostPages, cells: np.ndarray, fill: np.ndarray | None
    ) -> None:
        """Attend on the card, the host tier streamed through it; see `Device.attend`."""
        with self._gpu.active():
            self._transfers.attention.run(layer, pages, cells, fill)

    def _split(self, memory: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of n cells, one behind the other; uint16 [n, G, Dk] and [n, G, Dv]."""
        k_bytes, v_bytes = (n * row for row in self.row_bytes)
        k, v = memory[:k_bytes], memory[k_bytes : k_bytes + v_bytes]
        return (
            k.view(np.uint16).reshape(n, self._heads, self._dk),
            v.view(np.uint16).reshape(n, self._heads, self._dv),
        )


def _number(pointer: ffi.CData) -> int:
    return int(ffi.cast("intptr_t", pointer))


def _align(n_bytes: int) -> int:
    """Round up to whole words of 16 bytes."""
    return -(-n_bytes // 16) * 16


def _grid(n_items: int) -> int:
    return min(-(-n_items // THREADS), 1 << 16)
