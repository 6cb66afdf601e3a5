"""Parallel reads: every record reaches its row, whatever the disk gives at once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st
from icecache_local._native import ffi, lib

from icecache_local import record_io

NATIVE = Path(__file__).resolve().parents[1] / "native"
N, SIZE = 300, 512
SPARING = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/uio.h>
static ssize_t sparing(int fd, const struct iovec *parts, int n, off_t offset)
{
    static _Thread_local int calls;
    if (++calls % 5 == 0) {
        errno = EINTR;
        return -1;
    }
    struct iovec part = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};
    return n > 1 && calls % 3 ? preadv(fd, parts, n - 1, offset) : preadv(fd, &part, 1, offset);
}
#define preadv sparing
#include "ice_read.c"
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """N records of SIZE bytes: (file number, content)."""
    content = np.random.default_rng(0).integers(0, 256, (N, SIZE), np.uint8)
    path = tmp_path_factory.mktemp("records") / "records"
    path.write_bytes(content.tobytes())
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


@pytest.fixture(scope="module")
def sparing(tmp_path_factory):
    """`ice_read` on a disk that gives little at once and is interrupted."""
    if shutil.which("cc") is None or sys.platform == "win32":
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("sparing")
    (folder / "sparing.c").write_text(SPARING)
    built = folder / "sparing.so"
    command = ["cc", "-std=c11", "-shared", "-fPIC", "-pthread", f"-I{NATIVE}"]
    subprocess.run([*command, str(folder / "sparing.c"), "-o", str(built)], check=True)
    own = FFI()
    own.cdef(
        "int ice_read(int fd, const int64_t *numbers, const int64_t *at, int64_t n, uint8_t *out,"
        " int64_t bytes, int64_t run);"
    )
    return own.dlopen(str(built))


def read(lib, fd: int, numbers, at, out: np.ndarray, run: int) -> int:
    arrays = [np.array(x, np.int64) for x in (numbers, at)]
    pointers = [ffi.cast("int64_t *", x.ctypes.data) for x in arrays]
    return lib.ice_read(
        fd, *pointers, len(numbers), ffi.cast("uint8_t *", out.ctypes.data), out.shape[1], run
    )


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, N - 1), max_size=N), st.randoms(), st.sampled_from([0, 1, 3, 999]))
@pytest.mark.parametrize("disk", ["generous", "sparing"])
def test_every_record_reaches_its_row(file, sparing, disk, chosen, random, run) -> None:
    fd, content = file
    numbers, at = sorted(chosen), random.sample(range(N), len(chosen))
    out = np.full((N, SIZE), 7, np.uint8)
    assert read(sparing if disk == "sparing" else lib, fd, numbers, at, out, run) == 0
    assert np.array_equal(out[at], content[numbers])
    assert (np.delete(out, at, axis=0) == 7).all()


@pytest.mark.parametrize("disk", ["generous", "sparing"])
def test_a_file_that_is_too_short_is_an_error(file, sparing, disk) -> None:
    fd, _ = file
    out = np.zeros((2 * N, SIZE), np.uint8)
    tool = sparing if disk == "sparing" else lib
    for numbers in ([N], [0, N], range(2 * N)):
        at = range(len(numbers))
        assert read(tool, fd, list(numbers), list(at), out, 4) == errno.EIO
    assert read(tool, fd, [0], [1], out, 4) == 0, "an error must not stay"
    with pytest.raises(OSError, match="[Ii]nput/output"):
        record_io.read_records(fd, np.array([0, N + 3]), out, np.arange(2), SIZE)
    with pytest.raises(OSError, match="[Bb]ad file"):
        record_io.read_records(10**6, np.array([0]), out, np.arange(1), SIZE)


def test_several_threads_may_read_at_once(file) -> None:
    fd, content = file

    def one(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        out = np.zeros((N, SIZE), np.uint8)
        for _ in range(50):
            numbers, at = (rng.permutation(N)[:40] for _ in range(2))
            record_io.read_records(fd, numbers, out, at, SIZE)
            if not np.array_equal(out[at], content[numbers]):
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(6)))


FORK = """
import os, sys
import numpy as np
from icecache_local import record_io
fd, n, size = os.open(sys.argv[1], os.O_RDONLY), *map(int, sys.argv[2:])
def right():
    out = np.zeros((n, size), np.uint8)
    record_io.read_records(fd, np.arange(0, n, 2), out, np.arange(0, n, 2), size)
    return out[::2].tobytes() == np.fromfile(sys.argv[1], np.uint8).reshape(n, size)[::2].tobytes()
assert right()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_without_the_threads(file, tmp_path) -> None:
    (tmp_path / "records").write_bytes(file[1].tobytes())
    command = [sys.executable, "-c", FORK, str(tmp_path / "records"), str(N), str(SIZE)]
    subprocess.run(command, check=True, timeout=60)
