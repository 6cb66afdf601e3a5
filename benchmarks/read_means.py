"""Random pages of 8 KiB read from a file by several means, larger pieces, and megabytes in order.

Run `python benchmarks/read_means.py`. The file is dropped from the page cache before each
timing; O_DIRECT passes it. io_uring needs the package `liburing`.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from models import OUT

SIZE, COUNT = 8192, 8192
FILE_BYTES = 1 << 30
MEGABYTE = 1 << 20


def pread(direct: bool, threads: int, size: int, count: int) -> Callable[[str], None]:
    """Read in a pool of threads."""

    def run(path: str) -> None:
        fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        with mmap.mmap(-1, size * count) as memory:
            space, places = memoryview(memory), offsets(size, count)

            def part(first: int) -> None:
                for i in range(first, count, threads):
                    os.preadv(fd, [space[i * size : (i + 1) * size]], places[i])

            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(part, range(threads)))
            space.release()
        os.close(fd)

    return run


def mapped(path: str) -> None:
    """Copy out of a memory map in a pool of threads."""
    fd = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    memory.madvise(mmap.MADV_RANDOM)
    file, out = np.frombuffer(memory, np.uint8), np.empty((COUNT, SIZE), np.uint8)
    places = offsets(SIZE, COUNT)

    def part(first: int) -> None:
        for i in range(first, COUNT, 8):
            out[i] = file[places[i] : places[i] + SIZE]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(part, range(8)))
    os.close(fd)


def uring(path: str) -> None:
    """Keep 64 requests of io_uring in flight."""
    import liburing as io

    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    ring, event, depth = io.Ring(), io.Cqe(), 64
    io.io_uring_queue_init(depth, ring, 0)
    memory = mmap.mmap(-1, SIZE * COUNT)
    space, places = memoryview(memory), offsets(SIZE, COUNT)
    for first in range(0, COUNT, depth):
        vectors: list[object] = []  # must live until the reads are done
        for i in range(first, first + depth):
            entry = io.io_uring_get_sqe(ring)
            vectors.append(io.Iovec([space[i * SIZE : (i + 1) * SIZE]]))
            io.io_uring_prep_readv(entry, fd, vectors[-1], places[i])
        io.io_uring_submit_and_wait(ring, depth)
        io.io_uring_wait_cqe_nr(ring, event, depth)
        if any(event[i].res != SIZE for i in range(depth)):
            raise OSError("io_uring read less than was asked for")
        io.io_uring_cq_advance(ring, depth)
    io.io_uring_queue_exit(ring)
    os.close(fd)


def offsets(size: int, count: int) -> list[int]:
    """Distinct places in the file: in random order, but whole megabytes in order."""
    blocks = np.arange(FILE_BYTES // size)
    if size < MEGABYTE:
        blocks = np.random.default_rng(0).permutation(blocks)
    return (blocks[:count].astype(np.int64) * size).tolist()


def main() -> None:
    """Print one line per means."""
    path, big = str(OUT / "read_means.bin"), MEGABYTE
    pieces = {
        f"{n} KiB, pread, 16 threads, O_DIRECT": (
            pread(True, 16, n << 10, (64 << 10) // n), n << 10, (64 << 10) // n
        )
        for n in (16, 32, 64, 128)
    }  # fmt: skip
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(FILE_BYTES >> 24):
            file.write(rng.bytes(1 << 24))
        file.flush()
        os.fsync(file.fileno())
    means = {
        "pread, 8 threads, page cache": (pread(False, 8, SIZE, COUNT), SIZE, COUNT),
        "pread, 8 threads, O_DIRECT": (pread(True, 8, SIZE, COUNT), SIZE, COUNT),
        "pread, 32 threads, O_DIRECT": (pread(True, 32, SIZE, COUNT), SIZE, COUNT),
        "memory map, 8 threads": (mapped, SIZE, COUNT),
        "io_uring, 64 in flight, O_DIRECT": (uring, SIZE, COUNT),
        **pieces,
        "1 MiB in order, pread, 8 threads, O_DIRECT": (pread(True, 8, big, 512), big, 512),
        "1 MiB in order, pread, 8 threads, page cache": (pread(False, 8, big, 512), big, 512),
    }
    for name, (run, size, count) in means.items():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        start = time.perf_counter()
        run(path)
        seconds = time.perf_counter() - start
        rate, speed = count / seconds, count * size / seconds / 1e6
        print(f"{name:<46}{rate:>9,.0f} reads/s {speed:>7,.0f} MB/s", flush=True)
    os.unlink(path)


if __name__ == "__main__":
    main()
