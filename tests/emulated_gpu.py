"""A Gpu on the CPU: the kernels themselves, compiled for the host, and adversarial streams."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TYPES = {
    np.uint64: ctypes.c_uint64,
    np.int64: ctypes.c_int64,
    np.int32: ctypes.c_int32,
    np.float32: ctypes.c_float,
}


def build_kernels(folder: Path) -> ctypes.CDLL:
    """Compile kernels.cu for this processor."""
    library = folder / "kernels.so"
    command = ["c++", "-std=c++17", "-O2", "-march=native", "-shared", "-fPIC", "-Wall"]
    subprocess.run([*command, HERE / "kernels_on_host.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


class Memory:
    """Device memory, of NaNs before it is written."""

    def __init__(self, n_bytes: int) -> None:
        self._array = np.full(n_bytes + 256, 0xFF, np.uint8)
        self.ptr = -(-self._array.ctypes.data // 256) * 256


class EmulatedGpu:
    """A card without hardware; see `icecache_local.device.gpu.Gpu`.

    `lazy`: what is enqueued runs as late as events allow, and the streams in the worst order;
    otherwise at once. A missing wait shows in one of them: staging memory that is overwritten
    too early, or results that are read too soon.
    """

    def __init__(self, kernels: ctypes.CDLL, lazy: bool) -> None:
        self._kernels, self._lazy = kernels, lazy
        self._queues: list[list[Callable[[], None]]] = [[], []]
        self._done = [0, 0]  # operations of each stream that have run
        self._events: dict[int, tuple[int, int]] = {}  # stream, operations before it
        self.allocated = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def allocate(self, n_bytes: int) -> Memory:
        self.allocated += n_bytes
        return Memory(n_bytes)

    def pinned(self, n_bytes: int) -> np.ndarray:
        return np.full(n_bytes, 0xFF, np.uint8)

    def to_device(self, target: int, source: np.ndarray, n_bytes: int, stream: int) -> None:
        assert n_bytes <= source.nbytes
        self._enqueue(stream, lambda: ctypes.memmove(target, source.ctypes.data, n_bytes))

    def to_host(self, target: np.ndarray, source: int, n_bytes: int, stream: int) -> None:
        assert n_bytes <= target.nbytes
        self._enqueue(stream, lambda: ctypes.memmove(target.ctypes.data, source, n_bytes))

    def zero(self, target: int, n_bytes: int, stream: int) -> None:
        self._enqueue(stream, lambda: ctypes.memset(target, 0, n_bytes))

    def launch(self, kernel: str, grid: int, block: int, *args: object) -> None:
        types = [TYPES[type(arg)] for arg in args]
        pointer = ctypes.c_void_p.in_dll(self._kernels, f"launch_{kernel}").value
        call = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, *types)(pointer)
        # Any number of threads must do: few are faster here.
        few = min(block, 8)
        self._enqueue(1, lambda: call(grid, few, *(arg.item() for arg in args)))

    def gemm(self, transpose_a, shape, a, b, beta, c, batch) -> None:
        def run() -> None:
            m, n, k = shape
            first = _matrices(a, (k, m) if transpose_a else (m, k), np.float16, batch)
            first = first.transpose(0, 2, 1) if transpose_a else first
            second = _matrices(b, (k, n), np.float16, batch)
            out = _matrices(c, (m, n), np.float32, batch)
            product = first.astype(np.float32) @ second.astype(np.float32)
            out[...] = product + (beta * out if beta else 0)

        self._enqueue(1, run)

    def record(self, event: int, stream: int) -> None:
        self._events[event] = (stream, len(self._queues[stream]))

    def wait(self, stream: int, event: int) -> None:
        if event in self._events:
            position = self._events[event]
            self._enqueue(stream, lambda: self._run(*position))

    def synchronize(self, event: int) -> None:
        if event in self._events:
            self._run(*self._events[event])

    def _enqueue(self, stream: int, operation: Callable[[], None]) -> None:
        self._queues[stream].append(operation)
        if not self._lazy:
            self._run(stream, len(self._queues[stream]))

    def _run(self, stream: int, count: int) -> None:
        """Run a stream's first `count` operations, as far as they have not been."""
        while self._done[stream] < count:
            operation = self._queues[stream][self._done[stream]]
            self._done[stream] += 1
            operation()


def _matrices(place, shape, dtype, batch) -> np.ndarray:
    """Matrices stored by columns, from (address, leading dimension, stride); [batch, m, n]."""
    address, leading, stride = place
    rows, columns = shape
    size = np.dtype(dtype).itemsize
    count = (batch - 1) * stride + (columns - 1) * leading + rows
    memory = np.frombuffer((ctypes.c_char * (count * size)).from_address(address), dtype)
    strides = (stride * size, size, leading * size)
    return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), strides)
