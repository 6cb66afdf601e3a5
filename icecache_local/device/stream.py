"""Streamed exact attention: the host tier goes through VRAM in blocks while a prompt is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._native import ffi
from ..host_pages import HostPages
from .gpu import COMPUTE, COPY, Gpu
from .staging import stage_block

ALIGN = 256  # bytes; what cuBLAS and 16-byte words need, and more
LEAST_COLUMNS = 64
MOST_COLUMNS = 4096
ROW_THREADS = 128  # threads that share one row of logits
THREADS = 256
# Events
COPIED, USED, DONE = (0, 1), (2, 3), 4


@dataclass(frozen=True)
class Keys:
    """K and V of some tokens on the card: address, elements from token to token, head to head."""

    k: tuple[int, int, int]
    v: tuple[int, int, int]


class Arena:
    """Places for arrays one behind the other, in memory that need not exist yet."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, n_bytes: int) -> int:
        """Offset of the next array."""
        offset = self.size
        self.size += _round_up(n_bytes, ALIGN)
        return offset


class StreamedAttention:
    """Exact attention of a ubatch's queries over the host tier, on a GPU.

    Blocks of keys alternate between two buffers: while one is computed with, the next is
    gathered by the CPU's threads and copied. Logits and outputs are matrix products of f16 values
    with sums in f32; the online softmax (FlashAttention, arXiv 2205.14135) goes from block to
    block in f32.

    Parameters
    ----------
    gpu : Gpu
    limit : int
        Most bytes of VRAM; fewer columns than `LEAST_COLUMNS` are never used.
    """

    def __init__(self, gpu: Gpu, limit: int) -> None:
        self.gpu, self.limit = gpu, limit
        self._memory: object | None = None
        self._size = 0
        self._pinned = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def run(
        self,
        layer: ffi.CData,
        pages: HostPages,
        cells: np.ndarray,
        fill: np.ndarray | None = None,
    ) -> None:
        """Write the attention of one layer's new tokens to `layer.out`; see `Device.attend`.

        All addresses in `layer` are the card's. Nothing is left to wait for at the end.
        """
        step = _Step(self, layer, pages, cells, fill)
        step.start()
        for i, first in enumerate(range(0, step.n_past, step.n_columns)):
            step.stream(i % 2, first)
        step.own_tokens()
        step.finish()

    def reserve(self, n_bytes: int, pinned_bytes: int) -> int:
        """Make the buffers large enough; the address of the card's."""
        if n_bytes > self._size:
            self._memory = None  # give it back before asking for more
            self._memory = self.gpu.allocate(n_bytes)
            self._size = n_bytes
        if pinned_bytes > self._pinned[0].size:
            self._pinned = [self.gpu.pinned(pinned_bytes) for _ in range(2)]
        return self._memory.ptr

    def pinned(self, half: int) -> np.ndarray:
        """Staging memory of one of the two buffers."""
        return self._pinned[half]


class _Step:
    """One layer and one ubatch: T tokens, H query heads on G KV heads, blocks of B columns."""

    def __init__(
        self,
        attention: StreamedAttention,
        layer: ffi.CData,
        pages: HostPages,
        cells: np.ndarray,
        fill: np.ndarray | None,
    ) -> None:
        self.attention, self.gpu, self.layer = attention, attention.gpu, layer
        self.kv, self.cells = pages.kv, np.ascontiguousarray(cells)
        used = max(1, int(pages.n_pages.max()))
        self.fill = np.ascontiguousarray((pages.fill if fill is None else fill)[:, :used])
        self.ends = np.cumsum(self.fill, axis=1, dtype=np.int32)
        self.n_past = int(self.ends[:, -1].max())
        self.dk, self.dv = layer.dk, layer.dv
        self.dv_rows = 0 if layer.v_in_k else layer.dv  # V rows that are rows of their own
        self.n_rows = layer.n_heads * layer.n_tokens
        self._lay_out()

    def _lay_out(self) -> None:
        """Choose the block size and places of all arrays on the card."""
        t, g, rows = self.layer.n_tokens, self.layer.n_kv_heads, self.n_rows
        width = 2 * (self.dk + self.dv_rows)  # bytes of a token's K and V per head
        places = Arena()
        self.q = places.take(2 * rows * self.dk)
        self.acc = places.take(4 * rows * self.dv)
        self.top, self.sum = places.take(4 * rows), places.take(4 * rows)
        self.own_cells = places.take(8 * t)
        self.own_k = places.take(2 * t * g * self.dk)
        self.own_v = places.take(2 * t * g * self.dv_rows)
        per_column = 2 * g * width + 6 * rows  # in both staging buffers; logits and weights
        most = (self.attention.limit - places.size - 8 * ALIGN) // per_column // 16 * 16
        needed = _round_up(max(self.n_past, t), 16)
        columns = self.n_columns = min(needed, MOST_COLUMNS, max(LEAST_COLUMNS, most))
        self.logits = places.take(4 * rows * columns)
        self.weights = places.take(2 * rows * columns)
        *_, block_bytes = self._block(columns)
        self.blocks = [places.take(block_bytes) for _ in range(2)]
        base = self.attention.reserve(places.size, max(block_bytes, 8 * t))
        for name in ("q", "acc", "top", "sum", "own_cells", "own_k", "own_v", "logits", "weights"):
            setattr(self, name, base + getattr(self, name))
        self.blocks = [base + offset for offset in self.blocks]

    def _block(self, columns: int) -> tuple[int, int, int, int]:
        """Offsets of counts, K and V in a staging buffer, and its bytes."""
        block, g = Arena(), self.layer.n_kv_heads
        counts, k = block.take(4 * g), block.take(2 * g * columns * self.dk)
        return counts, k, block.take(2 * g * columns * self.dv_rows), block.size

    def start(self) -> None:
        """Bring the queries into place and begin the softmax; gather the ubatch's own rows."""
        layer, gpu = self.layer, self.gpu
        pinned = self.attention.pinned(0)
        n_bytes = 8 * layer.n_tokens
        pinned[:n_bytes] = self.cells.view(np.uint8)
        gpu.to_device(self.own_cells, pinned, n_bytes, COMPUTE)
        gpu.record(COPIED[0], COMPUTE)  # the pinned memory is free again after that
        gpu.launch(
            "load_queries",
            _grid(self.n_rows * self.dk),
            THREADS,
            *_addresses(_number(layer.q)),
            *_longs(layer.q_token, layer.q_head),
            *_ints(layer.n_tokens, layer.n_heads, self.dk),
            np.float32(layer.scale),
            *_addresses(self.q),
        )
        shape = _ints(layer.n_tokens, layer.n_heads)
        sinks = _addresses(_number(layer.sinks))
        args = (*sinks, *shape, *_addresses(self.top, self.sum))
        gpu.launch("start_softmax", _grid(self.n_rows), THREADS, *args)
        gpu.zero(self.acc, 4 * self.n_rows * self.dv, COMPUTE)
        sources = [(layer.k_cells, self.own_k, self.dk), (layer.v_cells, self.own_v, self.dv_rows)]
        for source, target, dim in sources:
            words = layer.n_kv_heads * dim // 8
            args = (*_ints(layer.n_tokens, words), *_addresses(target))
            places = _addresses(_number(source), self.own_cells)
            if words:
                grid = _grid(layer.n_tokens * words)
                gpu.launch("gather_cells", grid, THREADS, *places, *args)

    def stream(self, half: int, first: int) -> None:
        """Gather, copy and use the keys from `first` on, in one of the two buffers."""
        gpu, g, target = self.gpu, self.layer.n_kv_heads, self.blocks[half]
        pinned = self.attention.pinned(half)
        columns = min(self.n_columns, _round_up(self.n_past - first, 16))
        counts_at, k_at, v_at, n_bytes = self._block(columns)
        gpu.synchronize(COPIED[half])
        k = np.ndarray((g, columns, self.dk), np.uint16, pinned.data, k_at)
        v = np.ndarray((g, columns, self.dv_rows), np.uint16, pinned.data, v_at)
        counts = np.ndarray((g,), np.int32, pinned.data, counts_at)
        stage_block(self.kv, self.fill, self.ends, first, columns, k, v, counts)
        gpu.wait(COPY, USED[half])
        gpu.to_device(target, pinned, n_bytes, COPY)
        gpu.record(COPIED[half], COPY)
        gpu.wait(COMPUTE, COPIED[half])
        keys = self._keys(target + k_at, target + v_at, (1, columns))
        self._attend(keys, columns, target + counts_at, -1)
        gpu.record(USED[half], COMPUTE)

    def own_tokens(self) -> None:
        """Attend to the ubatch itself, causally."""
        g, t = self.layer.n_kv_heads, self.layer.n_tokens
        for first in range(0, t, self.n_columns):
            k = self.own_k + 2 * first * g * self.dk
            v = self.own_v + 2 * first * g * self.dv_rows
            keys = self._keys(k, v, (g, 1))
            self._attend(keys, min(self.n_columns, t - first), 0, first)

    def finish(self) -> None:
        """Write the result over llama.cpp's and wait until it is there."""
        layer, gpu = self.layer, self.gpu
        gpu.launch(
            "write_output",
            _grid(self.n_rows * self.dv),
            THREADS,
            *_addresses(self.acc, self.sum),
            *_ints(layer.n_tokens, layer.n_heads, self.dv),
            *_addresses(_number(layer.out)),
            *_longs(layer.out_token, layer.out_head),
        )
        gpu.record(DONE, COMPUTE)
        gpu.synchronize(DONE)

    def _keys(self, k: int, v: int, rows: tuple[int, int]) -> Keys:
        """Keys at two addresses; `rows` from token to token, and from head to head."""

        def strides(dim: int) -> tuple[int, int]:
            return rows[0] * dim, rows[1] * dim

        if self.layer.v_in_k:
            offset = _number(self.layer.v_cells) - _number(self.layer.k_cells)
            return Keys((k, *strides(self.dk)), (k + offset, *strides(self.dk)))
        return Keys((k, *strides(self.dk)), (v, *strides(self.dv)))

    def _attend(self, keys: Keys, n_columns: int, counts: int, first_key: int) -> None:
        """One block: logits, weights, output. Matrices stored by rows are transposes here."""
        layer, gpu, g, ld = self.layer, self.gpu, self.layer.n_kv_heads, self.n_columns
        group = layer.n_heads // g
        rows = group * layer.n_tokens  # of one KV head
        q = (self.q, self.dk, rows * self.dk)
        logits, weights = (self.logits, ld, rows * ld), (self.weights, ld, rows * ld)
        out = (self.acc, self.dv, rows * self.dv)
        gpu.gemm(True, (n_columns, rows, self.dk), keys.k, q, 0.0, logits, g)
        gpu.launch(
            "softmax_block",
            self.n_rows,
            ROW_THREADS,
            *_addresses(self.logits, self.weights),
            *_ints(n_columns, ld),
            *_addresses(counts),
            *_ints(first_key, layer.n_tokens, group),
            np.float32(layer.softcap),
            *_addresses(self.top, self.sum, self.acc),
            *_ints(self.dv),
        )
        gpu.gemm(False, (self.dv, rows, n_columns), keys.v, weights, 1.0, out, g)


def _number(pointer: ffi.CData) -> int:
    return int(ffi.cast("intptr_t", pointer))


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _grid(n_items: int) -> int:
    return min(-(-n_items // THREADS), 1 << 16)


def _addresses(*values: int) -> list[np.uint64]:
    return [np.uint64(value) for value in values]


def _longs(*values: int) -> list[np.int64]:
    return [np.int64(value) for value in values]


def _ints(*values: int) -> list[np.int32]:
    return [np.int32(value) for value in values]
