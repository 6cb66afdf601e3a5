"""Fixed-size records of a file, read and written by several threads, past the page cache."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np

from ._native import ffi, lib
from .errors import DiskTierError

ALIGN = 512  # bytes; records are multiples of it, so that they can be read directly
N_THREADS = 16  # more requests than cores keep an SSD busy; as in ice_read.c
RUN_BYTES = 1 << 20  # most bytes of one request
MOST_ROWS = 512  # most pieces of memory of one request
BUFFER_BYTES = 8 << 20


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(N_THREADS, thread_name_prefix="records")


_local = threading.local()


def buffer(record_bytes: int) -> np.ndarray:
    """Work space of the calling thread, aligned for direct reads; uint8 [n, record_bytes]."""
    n = max(1, BUFFER_BYTES // record_bytes)
    if getattr(_local, "memory", None) is None or len(_local.memory) < n * record_bytes:
        _local.memory = mmap.mmap(-1, max(BUFFER_BYTES, n * record_bytes))
    flat = np.frombuffer(_local.memory, np.uint8, n * record_bytes)
    return flat.reshape(n, record_bytes)


def open_direct(path: str | Path, flags: int) -> int:
    """Open a file past the page cache; through it where the file system knows no other way."""
    flags |= os.O_CLOEXEC
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o600)


def aligned(n: int, page_bytes: int) -> np.ndarray:
    """Memory that direct reads may fill; uint8 [n, page_bytes]."""
    memory = mmap.mmap(-1, max(1, n * page_bytes))
    return np.frombuffer(memory, np.uint8, n * page_bytes).reshape(n, page_bytes)


def read_records(
    fd: int, numbers: np.ndarray, out: np.ndarray, at: np.ndarray, record_bytes: int
) -> None:
    """Read records in parallel, each to a row of its own; neighbours in one request.

    Parameters
    ----------
    fd : int
    numbers : int64 array [n]
        Distinct record numbers, in any order.
    out : uint8 array [m, page_bytes]
        Receives the records without what they have beyond `page_bytes`. Contiguous; aligned
        where `fd` was opened for direct reads.
    at : int64 array [n]
        Row of each record.
    record_bytes : int

    Raises
    ------
    OSError
        The disk failed, or the file is too short.
    """
    order = np.argsort(numbers)
    numbers, at = (x[order].astype(np.int64, copy=False) for x in (numbers, at))
    if out.shape[1] == record_bytes and os.name == "posix":
        _read_in_place(fd, numbers, out, at)
    else:  # direct reads end at multiples of ALIGN
        _read_by_buffer(fd, numbers, out, at, record_bytes)


def _read_in_place(fd: int, numbers: np.ndarray, out: np.ndarray, at: np.ndarray) -> None:
    """Read into the rows themselves; numbers ascend."""
    error = lib.ice_read(
        fd,
        ffi.from_buffer("int64_t[]", numbers),
        ffi.from_buffer("int64_t[]", at),
        len(numbers),
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        out.shape[1],
        RUN_BYTES // out.shape[1],
    )
    if error:
        raise OSError(error, os.strerror(error))


def _read_by_buffer(
    fd: int, numbers: np.ndarray, out: np.ndarray, at: np.ndarray, record_bytes: int
) -> None:
    """Read whole records, and copy the part of each that a row takes; numbers ascend."""
    size, memory = out.shape[1], memoryview(out.reshape(-1))

    def read(runs: list[tuple[int, int]]) -> None:
        for first, last in runs:
            space = memoryview(buffer(record_bytes)[: last - first].reshape(-1))
            _transfer(os.preadv, fd, [space], int(numbers[first]) * record_bytes)
            for i, row in enumerate(at[first:last].tolist()):
                start = i * record_bytes
                memory[row * size : (row + 1) * size] = space[start : start + size]

    _each_run(read, numbers, record_bytes)


def write_records(fd: int, numbers: np.ndarray, data: np.ndarray) -> None:
    """Write records in parallel; neighbours in one request.

    Parameters
    ----------
    fd : int
    numbers : int64 array [n]
        Ascending record numbers.
    data : uint8 array [n, record_bytes]
        Contiguous; aligned where `fd` was opened for direct writes.

    Raises
    ------
    OSError
        The disk failed or is full.
    """
    rows = memoryview(data)

    def write(runs: list[tuple[int, int]]) -> None:
        for first, last in runs:
            offset = int(numbers[first]) * data.shape[1]
            _transfer(os.pwritev, fd, [rows[first:last].cast("B")], offset)

    _each_run(write, numbers, data.shape[1])


def _runs(numbers: np.ndarray, record_bytes: int) -> Iterator[tuple[int, int]]:
    """Index ranges [first, last) of neighbouring records that one request covers."""
    most = max(1, min(RUN_BYTES // record_bytes, MOST_ROWS))
    first = 0
    for end in [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]:
        while first < end:
            yield first, min(end, first + most)
            first = min(end, first + most)


def _each_run(
    act: Callable[[list[tuple[int, int]]], None], numbers: np.ndarray, record_bytes: int
) -> None:
    runs = list(_runs(numbers, record_bytes))
    if len(runs) <= 1:
        act(runs)
        return
    share = -(-len(runs) // N_THREADS)
    jobs = [_pool().submit(act, runs[i : i + share]) for i in range(0, len(runs), share)]
    wait(jobs)  # all of them: after an error none may go on
    for job in jobs:
        job.result()


def _transfer(
    call: Callable[[int, list[memoryview], int], int],
    fd: int,
    parts: list[memoryview],
    offset: int,
) -> None:
    """Have `call` fill or write `parts`, however little it takes at once."""
    done, wanted = call(fd, parts, offset), sum(map(len, parts))
    while done < wanted:
        skipped, rest = done, []
        for part in parts:
            rest += [part[skipped:]] if skipped < len(part) else []
            skipped = max(0, skipped - len(part))
        got = call(fd, rest, offset + done)
        if got == 0:
            raise OSError(errno.EIO, "the file is too short")
        done += got


class SpillFile:
    """Pages that have left memory: a private file without a name, gone with the process.

    Parameters
    ----------
    record_bytes : int
        A multiple of `ALIGN`.
    folder : str, optional
        Where the file lies; by default $TMPDIR or /var/tmp, which is on a disk where /tmp may
        not be.

    Raises
    ------
    DiskTierError
        No file can be made there.
    """

    def __init__(self, record_bytes: int, folder: str | None = None) -> None:
        self.record_bytes = record_bytes
        self.n_records = 0
        self.folder = folder or spill_folder()
        try:
            made, name = tempfile.mkstemp(prefix="icecache-", dir=self.folder)
            os.close(made)
            try:
                self.fd = open_direct(name, os.O_RDWR)
            finally:
                os.unlink(name)
        except OSError as error:
            raise DiskTierError(
                f"No spill file can be made in {self.folder} ({error.strerror}): set TMPDIR to a "
                "folder on a disk with room."
            ) from None

    def extend(self, n: int) -> np.ndarray:
        """Take `n` records at the end, whose places on the disk are found fastest; int64 [n]."""
        self.n_records += n
        return np.arange(self.n_records - n, self.n_records)

    def close(self) -> None:
        """Give the disk space back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def spill_folder() -> str:
    """Folder of spill files: $TMPDIR, else /var/tmp, else Python's choice."""
    for folder in (os.environ.get("TMPDIR"), "/var/tmp"):
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return tempfile.gettempdir()
