"""DiskTier: the pages of one layer that are not in memory."""

from __future__ import annotations

import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .config import PAGE
from .disk_pages import DiskPages
from .host_pages import ABSENT, WANTED, HostPages
from .record_io import aligned
from .replacement import held_blocks, rank, touch

if TYPE_CHECKING:
    from .sessions.page_file import PageFile

SLACK = 32  # of its share, a layer that must make room frees a part of 1 / SLACK more


@cache
def _background() -> ThreadPoolExecutor:
    """One thread that reads ahead; its requests run in the pool of all reads."""
    return ThreadPoolExecutor(1, thread_name_prefix="prefetch")


class DiskTier:
    """Which pages of one layer are in memory, and where the others are.

    A page's address never changes: `HostPages.kv` is virtual memory, the processor's own page
    table leads from page to frame, and no kernel knows of the disk. A page that leaves is
    written to the spill file, unless the disk holds it already, and its frame goes back to the
    operating system. Sink and tail ring never leave.

    Pages are asked for before they are touched (`fetch` and its kin); what is absent is read in
    parallel, those pages alone.

    Parameters
    ----------
    pages : HostPages
        Its `tier` becomes this one.
    first_page : int
        First page that may leave.
    by_attention : bool
        Pages leave by the S = I x F of ContiguousKV, see `replacement.rank`; by default those
        used longest ago leave first (LRU), as good or better in benchmarks/sessions.py.

    Attributes
    ----------
    share : int or None
        Most bytes of pages in memory.
    disk : DiskPages
        Where the disk holds them.
    """

    def __init__(
        self,
        pages: HostPages,
        first_page: int,
        by_attention: bool = False,
    ) -> None:
        heads, capacity, _ = pages.kv.shape
        self.pages, self.first_page, self.by_attention = pages, first_page, by_attention
        self.share: int | None = None
        self.disk = DiskPages(pages)
        self.n_copies = 0  # pages of copies in memory, see `LayerCache`
        self.clock = 1
        self._memory = pages.arena.block_of(pages.kv)
        self._state = pages.state.reshape(-1)
        zeros = pages.arena.zeros
        self.last_used = zeros((heads, capacity), np.int32)
        self.uses = zeros((heads, capacity), np.int32)
        self.importance = zeros((heads, capacity), np.float32)
        self._blocks = zeros((heads * capacity // pages.per_block,), np.int64)
        self._scores = zeros((heads * capacity // pages.per_block,), np.float32)
        self._absent = np.zeros(heads, np.int64)
        self._ahead: Future | None = None
        pages.tier = self

    def open_source(self, source: PageFile) -> None:
        """Let the pages that may leave lie in a file; nothing is read yet.

        Parameters
        ----------
        source : PageFile
            Pages by the numbers that they have in `pages`, whose page table is already in place.
            It may be closed afterwards.

        Raises
        ------
        SessionDamagedError
            The file is gone.
        """
        self.disk.open_source(source, self.first_page)
        for g, used in enumerate(self.pages.n_pages):
            self.pages.state[g, self.first_page : used] = ABSENT

    # -- pages are needed --------------------------------------------------------------------

    def fetch(self, places: np.ndarray) -> None:
        """Bring the pages of some rows into memory; they stay there until the next call.

        Parameters
        ----------
        places : int32 array [G, n]
            page * 16 + row, then -1.

        Raises
        ------
        DiskTierError, SessionDamagedError
        """
        self.settle()
        absent = self._touch(places)
        if len(absent):
            self._read_guarded(absent)

    def _touch(self, places: np.ndarray) -> np.ndarray:
        """Note the use of pages; the numbers of those absent, int64 [n], ascending."""
        self.clock += 1
        if places.size > len(self._absent):
            self._absent = np.zeros(places.size, np.int64)
        n = touch(
            *(self.pages.state, self.last_used, self.uses),
            *(np.ascontiguousarray(places), self.clock, self._absent),
        )
        return np.sort(self._absent[:n])

    def fetch_wanted(self) -> None:
        """Bring those pages into memory that the index has marked."""
        self.settle()
        self._read_guarded(self._take_wanted())

    def prefetch_wanted(self) -> None:
        """Begin to `fetch_wanted`; the next call of another method waits for the end."""
        self.settle()
        absent = self._take_wanted()
        if len(absent):
            self._ahead = _background().submit(self._read_guarded, absent)

    def _take_wanted(self) -> np.ndarray:
        """Pages that the index has marked and that are absent, int64 [n]; none leaves now."""
        self.clock += 1
        wanted = np.flatnonzero(self._state & WANTED)
        self.last_used.reshape(-1)[wanted] = self.clock
        self._state[wanted] &= ~np.uint8(WANTED)
        return wanted[self._state[wanted] & ABSENT > 0]

    def fetch_all(self) -> None:
        """Bring all pages into memory, in the order of the file, whatever the share."""
        self.settle()
        self.clock += 1
        self._read_guarded(self._all_absent(), room=False)

    def prefetch_all(self) -> None:
        """Begin to `fetch_all`; the next call of another method waits for the end."""
        self.settle()
        self.clock += 1
        self._ahead = _background().submit(self._read_guarded, self._all_absent(), False)

    def prefetch(self, places: np.ndarray) -> None:
        """Begin to `fetch`; the next call of another method waits for the end."""
        self.settle()
        self._ahead = _background().submit(self._read_guarded, self._touch(places))

    def settle(self) -> None:
        """Wait for what is being read ahead."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.result()

    def some(self, head: int, numbers: np.ndarray) -> np.ndarray:
        """Copy K and V of pages (int [n]) of a head, wherever they are; uint16 [n, width].

        Nothing comes into memory for good.
        """
        self.settle()
        rows = aligned(len(numbers), self.pages.page_bytes)
        kv = rows.view(np.uint16)
        kv[:] = self.pages.kv[head, numbers]
        absent = np.flatnonzero(self.pages.state[head, numbers] & ABSENT)
        self.disk.read_into(numbers[absent] + head * self.pages.capacity, rows, absent)
        return kv

    # -- room --------------------------------------------------------------------------------

    @property
    def nbytes_held(self) -> int:
        """Bytes of pages in memory."""
        pages = self.pages
        first_block = -(-self.first_page // pages.per_block)
        held = held_blocks(pages.state, pages.n_pages, pages.per_block, first_block)
        return (held * pages.per_block + self.n_copies) * pages.page_bytes

    @property
    def nbytes_absent(self) -> int:
        """Bytes of pages that are on the disk alone."""
        return len(self._all_absent()) * self.pages.page_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, wherever they are."""
        return int(self.pages.n_pages.sum()) * self.pages.page_bytes

    def nbytes_after(self, n_new: int) -> int:
        """Most bytes of all pages once `n_new` tokens have been appended."""
        heads = len(self.pages.n_pages)
        spare = n_new // PAGE + n_new // 64 + 2 * PAGE  # splits, and pages about to be freed
        return self.nbytes + heads * spare * self.pages.page_bytes

    def trim(self, share: int | None) -> None:
        """Let pages leave until the others take at most `share` bytes, now and later.

        Sink and tail ring stay.
        """
        self.settle()
        self.share = share
        self.make_room()

    def make_room(self) -> None:
        """Return to the share, after pages have been added."""
        self.clock += 1
        self._make_room(0)

    def _make_room(self, wanted: int) -> None:
        """Let pages leave until `wanted` more bytes fit."""
        if self.share is None:
            return
        over = self.nbytes_held + wanted - self.share
        if over <= 0:
            return
        pages = self.pages
        first_block = -(-self.first_page // pages.per_block)
        n = rank(
            (pages.state, pages.fill, self.last_used, self.uses, self.importance),
            *(pages.n_pages, (pages.per_block, first_block), self.clock, self.by_attention),
            *(self._blocks, self._scores),
        )
        block_bytes = pages.per_block * pages.page_bytes
        leave = min(n, -(-over // block_bytes) + self.share // SLACK // block_bytes)
        if leave == 0:
            return
        # Head by head among equals: what stays, and what will be read again, stays together.
        worst = np.argsort(self._scores[:n], kind="stable")[:leave]
        self._drop(np.sort(self._blocks[worst]))

    def _drop(self, blocks: np.ndarray) -> None:
        """Give back the memory of `blocks` (int64 [n], ascending), after writing what is new."""
        pages, k = self.pages, self.pages.per_block
        numbers = (blocks[:, None] * k + np.arange(k)).reshape(-1)
        numbers = numbers[numbers % pages.capacity < pages.n_pages[numbers // pages.capacity]]
        held = (self._state[numbers] & ABSENT == 0) & (pages.fill.reshape(-1)[numbers] > 0)
        self.disk.write(numbers[held & self.disk.is_stale(numbers)])
        self._state[numbers] = ABSENT
        size = k * pages.page_bytes
        first = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
        lengths = np.diff(first, append=len(blocks)) * size
        for start, length in zip((blocks[first] * size).tolist(), lengths.tolist(), strict=True):
            self._memory.madvise(mmap.MADV_DONTNEED, start, length)

    # -- the disk ----------------------------------------------------------------------------

    def _all_absent(self) -> np.ndarray:
        absent = (self.pages.state & ABSENT > 0) & (self.pages.fill > 0)
        return np.flatnonzero(absent)

    def _read_guarded(self, numbers: np.ndarray, room: bool = True) -> None:
        """Read absent pages (int64 [n], ascending) to their places, after making `room`."""
        try:
            if room:
                n_blocks = len(np.unique(numbers // self.pages.per_block))
                self._make_room(n_blocks * self.pages.per_block * self.pages.page_bytes)
            self.disk.read(numbers)
        except BaseException:
            self.disk.failed = True
            raise
        self._state[numbers] &= ~np.uint8(ABSENT)

    def close(self) -> None:
        """Close the files; the pages are lost."""
        if self._ahead is not None:
            self._ahead.exception()  # waits; nobody needs what was read
            self._ahead = None
        self.disk.close()
