"""DiskPages: the copies of one layer's pages on the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from .errors import DiskTierError, SessionDamagedError
from .host_pages import WRITTEN, HostPages
from .record_io import ALIGN, SpillFile, buffer, open_direct, read_records, write_records

if TYPE_CHECKING:
    from .sessions.page_file import PageFile

NOWHERE, IN_SOURCE, IN_SPILL = range(3)  # where the disk holds a page


class DiskPages:
    """Where the disk holds each page: in the session's file, the *source*, or in the spill file.

    Pages are named by head * capacity + number in the page table. The source is never written;
    the spill file is made when first a page has to be.

    Parameters
    ----------
    pages : HostPages

    Attributes
    ----------
    read_bytes, written_bytes : int
        Bytes that went from and to the disk.
    failed : bool
        A read or write has failed: the contents are no longer sure.
    """

    def __init__(self, pages: HostPages) -> None:
        heads, capacity, width = pages.kv.shape
        self.read_bytes = self.written_bytes = 0
        self.failed = False
        self._pages = pages
        self._rows = pages.kv.reshape(heads * capacity, width).view(np.uint8)
        self._record = -(-pages.page_bytes // ALIGN) * ALIGN
        self._place = pages.arena.zeros((heads * capacity,), np.uint8)
        self._spilled_to = pages.arena.zeros((heads * capacity,), np.int64)  # record, IN_SPILL
        self._spill: SpillFile | None = None
        self._source: PageFile | None = None
        self._source_fd = -1

    @property
    def has_source(self) -> bool:
        """Whether the sequence was opened from a file."""
        return self._source is not None

    def open_source(self, source: PageFile, first_page: int) -> None:
        """Let each head's pages from `first_page` on lie in a file, which may be closed later.

        Raises
        ------
        SessionDamagedError
            The file is gone.
        """
        try:
            self._source_fd = open_direct(source.path, os.O_RDONLY)
        except OSError as error:
            raise SessionDamagedError(
                f"{source.path}: {error.strerror}; remove the session and read the text again."
            ) from None
        self._source = source
        place = self._place.reshape(self._pages.state.shape)
        for g, used in enumerate(self._pages.n_pages):
            place[g, first_page:used] = IN_SOURCE

    def is_stale(self, numbers: np.ndarray) -> np.ndarray:
        """Which pages (int64 [n]) have changed in memory since the disk saw them; bool [n]."""
        written = self._pages.state.reshape(-1)[numbers] & WRITTEN > 0
        return written | (self._place[numbers] == NOWHERE)

    def read(self, numbers: np.ndarray) -> None:
        """Copy pages (int64 [n], ascending) to their places in memory.

        Raises
        ------
        DiskTierError, SessionDamagedError
        """
        self.read_into(numbers, self._rows, numbers)

    def read_into(self, numbers: np.ndarray, rows: np.ndarray, at: np.ndarray) -> None:
        """Copy pages (int64 [n]) to rows[at]; rows uint8 [m, page_bytes], aligned.

        Raises
        ------
        DiskTierError, SessionDamagedError
        """
        places = self._place[numbers]
        for place in (IN_SOURCE, IN_SPILL):
            which = np.flatnonzero(places == place)
            if not len(which):
                continue
            try:
                if place == IN_SOURCE:
                    heads, pages = np.divmod(numbers[which], self._pages.capacity)
                    records = self._source.records(heads, pages)
                    read_records(self._source_fd, records, rows, at[which], self._record)
                    self._check(records, rows, at[which])
                else:
                    records = self._spilled_to[numbers[which]]
                    read_records(self._spill.fd, records, rows, at[which], self._record)
            except OSError as error:
                raise self._error(error) from None
            self.read_bytes += len(which) * self._record

    def _check(self, records: np.ndarray, rows: np.ndarray, at: np.ndarray) -> None:
        """Compare the checksums of records of the source that were read to rows[at].

        In one thread: the calls are so short that several would only wait for one another.
        """
        size, memory = rows.shape[1], memoryview(rows.reshape(-1))
        found = [xxh3_64_intdigest(memory[i * size : (i + 1) * size]) for i in at.tolist()]
        if found != self._source.checksums[records].tolist():
            raise SessionDamagedError(
                f"{self._source.path} is damaged; remove the session and read the text again."
            )

    def write(self, numbers: np.ndarray) -> None:
        """Write pages (int64 [n]) to the spill file, those new to it behind one another.

        Raises
        ------
        DiskTierError
        """
        if not len(numbers):
            return
        if self._spill is None:
            self._spill = SpillFile(self._record)
        new = numbers[self._place[numbers] != IN_SPILL]
        self._spilled_to[new] = self._spill.extend(len(new))
        numbers = numbers[np.argsort(self._spilled_to[numbers])]
        space = buffer(self._record)
        try:
            for first in range(0, len(numbers), len(space)):
                part = numbers[first : first + len(space)]
                data = space[: len(part)]
                data[:, : self._pages.page_bytes] = self._rows[part]
                write_records(self._spill.fd, self._spilled_to[part], data)
                self.written_bytes += data.size
        except OSError as error:
            raise self._error(error) from None
        self._place[numbers] = IN_SPILL

    def _error(self, error: OSError) -> DiskTierError:
        self.failed = True
        return DiskTierError(
            f"Pages could not be kept on the disk ({error.strerror or error}): make room there, "
            "or raise ram_limit."
        )

    def close(self) -> None:
        """Close the files; the pages are lost."""
        if self._spill is not None:
            self._spill.close()
        if self._source_fd >= 0:
            os.close(self._source_fd)
            self._source_fd = -1
