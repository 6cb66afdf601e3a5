"""Gpu: what the CUDA device asks of a graphics card, apart from the library that provides it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

COPY, COMPUTE = 0, 1  # streams: work of one runs in order, that of two in any


class Gpu(Protocol):
    """One card. Addresses are plain numbers; what is enqueued runs later, in stream order.

    Events are numbered by the caller; waiting for one that was never recorded does nothing.

    Raises
    ------
    DeviceError
        By everything inside of `active`.
    """

    def active(self) -> AbstractContextManager[None]:
        """Make this card the current one; all other methods belong inside the `with` block."""

    def allocate(self, n_bytes: int) -> object:
        """Device memory, given back when the object is gone; its address is `.ptr`."""

    def pinned(self, n_bytes: int) -> np.ndarray:
        """Host memory that is copied without a detour; uint8 [n_bytes]."""

    def to_device(self, target: int, source: np.ndarray, n_bytes: int, stream: int) -> None:
        """Enqueue a copy; `source` is pinned and must stay as it is until it has run."""

    def to_host(self, target: np.ndarray, source: int, n_bytes: int, stream: int) -> None:
        """Enqueue a copy into pinned memory."""

    def zero(self, target: int, n_bytes: int, stream: int) -> None:
        """Enqueue the clearing of device memory."""

    def launch(self, kernel: str, grid: int, block: int, *args: object) -> None:
        """Enqueue a kernel of kernels.cu on COMPUTE.

        Arguments are numpy scalars of the kernel's types; addresses are np.uint64.
        """

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
        """Enqueue C = A B + beta C on COMPUTE; A and B f16, C f32, sums in f32.

        Parameters
        ----------
        transpose_a : bool
            A is stored as its transpose.
        shape : (m, n, k)
            C is m x n, A m x k, B k x n, all stored by columns.
        a, b, c : (address, leading dimension, stride from one matrix to the next), in elements
        beta : float
        batch : int
            Number of matrices.
        """

    def record(self, event: int, stream: int) -> None:
        """Let the event stand for everything that is enqueued on a stream now."""

    def wait(self, stream: int, event: int) -> None:
        """Let what is enqueued on a stream from now on wait for an event."""

    def synchronize(self, event: int) -> None:
        """Wait here for an event."""
