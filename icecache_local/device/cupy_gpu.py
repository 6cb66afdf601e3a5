"""CupyGpu: an NVIDIA card through cupy, in llama.cpp's own CUDA context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from types import ModuleType

import numpy as np

from ..errors import DeviceError, MissingExtraError
from .gpu import COMPUTE

N_EVENTS = 8
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
F16, F32, COMPUTE_F32 = 2, 0, 68  # cudaDataType, cublasComputeType
DEFAULT_ALGORITHM = -1
OUT_OF_MEMORY, CUBLAS_ALLOC_FAILED, NO_DRIVER, NO_DEVICE = 2, 3, 35, 100


class CupyGpu:
    """One card; see `Gpu`.

    cupy uses the device's primary context, as llama.cpp does: addresses of either hold for both.

    Parameters
    ----------
    address : int
        Any address in the card's memory.

    Raises
    ------
    MissingExtraError
        cupy is not installed.
    DeviceError
        It has no driver, or the kernels cannot be compiled.
    """

    def __init__(self, address: int) -> None:
        cupy = import_cupy()
        with translated():
            self.number = cupy.cuda.runtime.pointerGetAttributes(address).device
            with cupy.cuda.Device(self.number):
                self._streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
                self._events = [cupy.cuda.Event(disable_timing=True) for _ in range(N_EVENTS)]
                source = files(__package__).joinpath("kernels.cu").read_text()
                self._module = cupy.RawModule(code=source, options=("-std=c++17",))
                self._kernels: dict[str, object] = {}
                self._cublas = _cublas()
                cupy.cuda.device.get_cublas_handle()  # fails here rather than in a prompt
        self._cupy = cupy
        self._factors = {x: np.array(x, np.float32) for x in (0.0, 1.0)}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the card current, and say what its errors mean; see `Gpu.active`."""
        with translated(), self._cupy.cuda.Device(self.number), self._streams[COMPUTE]:
            yield

    def allocate(self, n_bytes: int) -> object:
        """Take device memory; see `Gpu.allocate`."""
        return self._cupy.cuda.Memory(n_bytes)

    def pinned(self, n_bytes: int) -> np.ndarray:
        """Take pinned memory; see `Gpu.pinned`."""
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)

    def to_device(self, target: int, source: np.ndarray, n_bytes: int, stream: int) -> None:
        """Enqueue a copy; see `Gpu.to_device`."""
        self._copy(target, source.ctypes.data, n_bytes, HOST_TO_DEVICE, stream)

    def to_host(self, target: np.ndarray, source: int, n_bytes: int, stream: int) -> None:
        """Enqueue a copy; see `Gpu.to_host`."""
        self._copy(target.ctypes.data, source, n_bytes, DEVICE_TO_HOST, stream)

    def _copy(self, target: int, source: int, n_bytes: int, kind: int, stream: int) -> None:
        pointer = self._streams[stream].ptr
        self._cupy.cuda.runtime.memcpyAsync(target, source, n_bytes, kind, pointer)

    def zero(self, target: int, n_bytes: int, stream: int) -> None:
        """Enqueue a clearing; see `Gpu.zero`."""
        self._cupy.cuda.runtime.memsetAsync(target, 0, n_bytes, self._streams[stream].ptr)

    def launch(self, kernel: str, grid: int, block: int, *args: object) -> None:
        """Enqueue a kernel; see `Gpu.launch`."""
        if kernel not in self._kernels:
            self._kernels[kernel] = self._module.get_function(kernel)
        self._kernels[kernel]((grid,), (block,), args)

    def gemm(
        self,
        transpose_a: bool,
        shape: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        beta: float,
        c: tuple[int, int, int],
        batch: int,
    ) -> None:
        """Enqueue matrix products; see `Gpu.gemm`."""
        handle = self._cupy.cuda.device.get_cublas_handle()  # one per thread; on our stream
        alpha, beta_at = self._factors[1.0].ctypes.data, self._factors[beta].ctypes.data
        self._cublas.gemmStridedBatchedEx(
            *(handle, int(transpose_a), 0, *shape, alpha),
            *(a[0], F16, *a[1:]),
            *(b[0], F16, *b[1:]),
            *(beta_at, c[0], F32, *c[1:]),
            *(batch, COMPUTE_F32, DEFAULT_ALGORITHM),
        )

    def record(self, event: int, stream: int) -> None:
        """Record an event; see `Gpu.record`."""
        self._events[event].record(self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        """Let a stream wait; see `Gpu.wait`."""
        self._streams[stream].wait_event(self._events[event])

    def synchronize(self, event: int) -> None:
        """Wait for an event; see `Gpu.synchronize`."""
        self._events[event].synchronize()


def import_cupy() -> ModuleType:
    """Import cupy.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError(
            f"cupy cannot be imported ({error}): pip install 'icecache-local[cuda]', or leave "
            f"device out."
        ) from None
    return cupy


def _cublas() -> ModuleType:
    from cupy_backends.cuda.libs import cublas

    return cublas


@contextmanager
def translated() -> Iterator[None]:
    """Turn what cupy raises into one sentence that says what to do.

    Raises
    ------
    DeviceError
    """
    try:
        yield
    except DeviceError:
        raise
    except (RuntimeError, MemoryError, ImportError) as error:
        raise DeviceError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    status, kind = getattr(error, "status", None), type(error).__name__
    short_of_memory = {"CUDARuntimeError": OUT_OF_MEMORY, "CUBLASError": CUBLAS_ALLOC_FAILED}
    if isinstance(error, MemoryError) or status is not None and status == short_of_memory.get(kind):
        return (
            "The GPU is out of memory: lower n_gpu_layers, n_batch or the cache's stream_limit; "
            "what has been read is kept in host memory."
        )
    if isinstance(error, ImportError):
        return f"cupy lacks a CUDA library ({error}): pip install 'icecache-local[cuda]'."
    if status in (NO_DRIVER, NO_DEVICE) and kind == "CUDARuntimeError":
        return f"cupy finds no GPU with a new enough driver ({error}): update the driver."
    return (
        f"The GPU failed ({error}): what has been read is kept in host memory; save the session "
        f"and open it in a new process."
    )
