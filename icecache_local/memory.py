"""Virtual memory that costs nothing until it is touched."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

HUGE_PAGE = 2 << 20  # bytes


class Arena:
    """Zero-filled arrays reserved at full size; the OS commits a page at its first write.

    The host tier so grows without moving what is there. `release` gives everything back.
    """

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []

    def zeros(
        self, shape: tuple[int, ...], dtype: np.dtype | type, huge: bool = False
    ) -> np.ndarray:
        """Reserve a zero-filled array of `shape`; no memory is used before it is written.

        With `huge` the OS may commit `HUGE_PAGE` bytes at a time, if the array is at least as
        large. Random reads get faster: the CPU finds the addresses of more of it in its tables.
        """
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        block = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=flags)
        is_large = count * dtype.itemsize >= HUGE_PAGE
        if huge and is_large and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                block.madvise(mmap.MADV_HUGEPAGE)
        self._maps.append(block)
        return np.frombuffer(block, dtype=dtype, count=count).reshape(shape)

    def block_of(self, array: np.ndarray) -> mmap.mmap:
        """Return the memory of one of `zeros`' arrays; its small pages can be given back."""
        for block in self._maps:
            if np.frombuffer(block, np.uint8).ctypes.data == array.ctypes.data:
                if hasattr(mmap, "MADV_NOHUGEPAGE"):  # one write would commit HUGE_PAGE otherwise
                    with contextlib.suppress(OSError):
                        block.madvise(mmap.MADV_NOHUGEPAGE)
                return block
        raise ValueError("the array is not one of this arena's")

    def release(self) -> None:
        """Return every page to the OS; all arrays read as zero again."""
        for block in self._maps:
            block.madvise(mmap.MADV_DONTNEED)


def is_begin(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether `part` is a view that begins where `whole` does."""
    return part.ctypes.data == whole.ctypes.data
