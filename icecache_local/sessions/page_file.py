"""PageFile: one layer's pages on disk, fixed-size records with a checksum each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from ..errors import SessionDamagedError
from ..host_pages import HostPages
from .files import ADVICE, create, write_all

ALIGN = 512  # bytes: records are aligned for direct reads
READERS = 8  # threads; more requests than cores keep a disk busy
RUN_BYTES = 1 << 20  # most bytes of one read


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="pages")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def record_size(page_bytes: int) -> int:
    """Bytes of one record: a page, zero-padded to a multiple of `ALIGN`."""
    return -(-page_bytes // ALIGN) * ALIGN


class PageFile:
    """Read-only pages of one layer.

    Each head has n_pages records in an order of its own; a record is one page, K rows first, as
    in `HostPages.kv`.

    Parameters
    ----------
    path : Path
    n_heads, n_pages : int
        KV heads G and pages per head P.
    page_bytes : int
        Bytes of a page without its padding.
    checksums : uint64 array [G * P]
        XXH3-64 of each record's bytes without the padding.
    place : int32 array [G, P], optional
        Which of its head's records each page is; by default they are in the order of the pages.

    Raises
    ------
    SessionDamagedError
        The file is missing or has another size than G * P records.
    """

    def __init__(
        self,
        path: Path,
        n_heads: int,
        n_pages: int,
        page_bytes: int,
        checksums: np.ndarray,
        place: np.ndarray | None = None,
    ) -> None:
        self.path, self.n_heads, self.n_pages = path, n_heads, n_pages
        self.page_bytes, self.record_bytes = page_bytes, record_size(page_bytes)
        self.checksums = checksums
        self.place = np.tile(np.arange(n_pages), (n_heads, 1)) if place is None else place
        self._padding = bytearray(self.record_bytes - page_bytes)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SessionDamagedError(f"{path}: {error.strerror}; {ADVICE}.") from None
        expected = n_heads * n_pages * self.record_bytes
        found = os.fstat(self.fd).st_size
        if found != expected or len(checksums) != n_heads * n_pages:
            self.close()
            raise SessionDamagedError(f"{path} has {found} bytes, not {expected}; {ADVICE}.")

    def records(self, heads: int | np.ndarray, pages: np.ndarray) -> np.ndarray:
        """Record numbers of pages; int64 [n]."""
        return heads * np.int64(self.n_pages) + self.place[heads, pages]

    def read(self, numbers: np.ndarray, out: np.ndarray, at: np.ndarray | None = None) -> None:
        """Read records in parallel and compare their checksums.

        Parameters
        ----------
        numbers : int64 array [n]
            Record numbers, in any order; neighbours are read at once.
        out : array [m, page_bytes / itemsize]
            Receives the pages; each row must be contiguous.
        at : int64 array [n], optional
            Row of `out` for each page; by default the first to row 0, and so on.

        Raises
        ------
        SessionDamagedError
            A page's bytes are not those that were written, or the disk failed.
        """
        rows = out.view(np.uint8)
        at = np.arange(len(rows)) if at is None else at
        if rows.shape[1] != self.page_bytes or len(at) != len(numbers):
            raise ValueError(
                f"{len(numbers)} pages of {self.page_bytes} bytes do not fit in {list(rows.shape)}"
            )
        order = np.argsort(numbers)
        numbers, order = numbers[order], at[order]
        list(_pool().map(lambda run: self._read_run(numbers, rows, order, *run),
                         self._runs(numbers)))  # fmt: skip

    def _runs(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Index ranges [first, last) of `numbers` that one read covers."""
        most = max(1, min(RUN_BYTES // self.record_bytes, os.sysconf("SC_IOV_MAX") // 2))
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1
        first = 0
        for end in [*ends.tolist(), len(numbers)]:
            while first < end:
                last = min(end, first + most)
                yield first, last
                first = last

    def _read_run(
        self, numbers: np.ndarray, rows: np.ndarray, order: np.ndarray, first: int, last: int
    ) -> None:
        targets = [rows[i] for i in order[first:last].tolist()]
        buffers: list[np.ndarray | bytearray] = []
        for row in targets:
            buffers += [row, self._padding] if self._padding else [row]
        wanted, at = (last - first) * self.record_bytes, int(numbers[first]) * self.record_bytes
        try:
            got = os.preadv(self.fd, buffers, at)
        except OSError as error:
            raise SessionDamagedError(f"{self.path}: {error.strerror}; {ADVICE}.") from None
        sound = got == wanted and all(
            xxh3_64_intdigest(row) == self.checksums[number]
            for number, row in zip(numbers[first:last], targets, strict=True)
        )
        if not sound:
            raise SessionDamagedError(f"{self.path} is damaged near byte {at}; {ADVICE}.")

    def close(self) -> None:
        """Close the file; nothing may be reading."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def write_pages(path: Path, pages: HostPages, order: np.ndarray) -> np.ndarray:
    """Write a new pages file and flush it to the disk.

    Parameters
    ----------
    path : Path
        Must not exist; created with mode 0600.
    pages : HostPages
    order : int32 array [G, n]
        Pages of each KV head to write.

    Returns
    -------
    uint64 array [G * n]
        Checksums, as `PageFile` takes them.

    Raises
    ------
    OSError
        The disk is full or failed.
    """
    page_bytes = pages.page_bytes
    block = max(1, RUN_BYTES // record_size(page_bytes))
    padded = np.zeros((block, record_size(page_bytes)), np.uint8)
    checksums = np.zeros(order.shape, np.uint64)
    fd = create(path)
    try:
        for g, numbers in enumerate(order):
            for first in range(0, len(numbers), block):
                rows = pages.some(g, numbers[first : first + block]).view(np.uint8)
                padded[: len(rows), :page_bytes] = rows
                checksums[g, first : first + len(rows)] = [xxh3_64_intdigest(row) for row in rows]
                write_all(fd, padded[: len(rows)])
        os.fsync(fd)
    finally:
        os.close(fd)
    return checksums.ravel()
