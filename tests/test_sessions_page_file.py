"""PageFile returns the pages that were written, or says that it cannot."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecache_local.config import ModelShape
from icecache_local.errors import SessionDamagedError
from icecache_local.host_pages import HostPages
from icecache_local.sessions.page_file import PageFile, record_size, write_pages

SHAPE = ModelShape(1, 6, 3, 12, 8)  # pages of 640 bytes: records are padded
N_PAGES = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Host pages of random bytes, and the file made from all but the last three of each head."""
    pages = HostPages(SHAPE, N_PAGES + 3)
    pages.kv[:] = np.random.default_rng(0).integers(0, 1 << 16, pages.kv.shape, np.uint16)
    path = tmp_path_factory.mktemp("pages") / "pages-00"
    return pages, path, write_pages(path, pages, np.tile(np.arange(N_PAGES), (SHAPE.n_kv_heads, 1)))


def opened(written) -> PageFile:
    pages, path, checksums = written
    return PageFile(path, SHAPE.n_kv_heads, N_PAGES, pages.page_bytes, checksums)


@given(numbers=st.lists(st.integers(0, 3 * N_PAGES - 1), max_size=200))
def test_reads_are_what_was_written(written, numbers) -> None:
    pages, file = written[0], opened(written)
    numbers = np.array(numbers, np.int64)
    out = np.zeros((len(numbers), pages.kv.shape[2]), np.uint16)
    file.read(numbers, out)
    file.close()
    np.testing.assert_array_equal(out, pages.kv[numbers // N_PAGES, numbers % N_PAGES])


def test_records_are_aligned_and_private(written) -> None:
    pages, path, _ = written
    assert record_size(pages.page_bytes) == 1024
    assert path.stat().st_size == 3 * N_PAGES * 1024
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_flipped_bit_is_found_where_it_is(written, tmp_path) -> None:
    pages, path, checksums = written
    copy = tmp_path / "copy"
    data = bytearray(path.read_bytes())
    data[5 * 1024 + 17] ^= 4
    copy.write_bytes(data)
    file = PageFile(copy, 3, N_PAGES, pages.page_bytes, checksums)
    out = np.zeros((1, pages.kv.shape[2]), np.uint16)
    file.read(np.array([4]), out)
    with pytest.raises(SessionDamagedError, match="damaged near byte 5120"):
        file.read(np.array([5]), out)
    os.truncate(copy, 5 * 1024)  # while it is open
    with pytest.raises(SessionDamagedError, match="damaged near byte 6144"):
        file.read(np.array([6]), out)
    file.close()


@pytest.mark.parametrize("size", [0, 1024, 3 * N_PAGES * 1024 - 1, 3 * N_PAGES * 1024 + 1])
def test_another_size_is_refused(written, tmp_path, size) -> None:
    pages, path, checksums = written
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(SessionDamagedError, match="bytes, not"):
        PageFile(copy, 3, N_PAGES, pages.page_bytes, checksums)


def test_a_missing_file_is_refused(written, tmp_path) -> None:
    with pytest.raises(SessionDamagedError, match="No such file"):
        PageFile(tmp_path / "none", 3, N_PAGES, written[0].page_bytes, written[2])
