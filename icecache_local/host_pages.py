"""HostPages: the host tier of one layer, pages of 16 tokens per KV head."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

import numpy as np

from .config import PAGE, ModelShape
from .memory import HUGE_PAGE, Arena

HUGE_FROM = 8 * HUGE_PAGE // 2  # elements reserved per KV head: at most one part in 8 is wasted

if TYPE_CHECKING:
    from .disk_tier import DiskTier
    from .sessions.page_file import PageFile

# Bits of HostPages.state
ABSENT = 1  # K and V are on the disk alone
WRITTEN = 2  # K and V are newer than what the disk holds, if it holds anything
WANTED = 4  # the index waits for the page


class HostPages:
    """K and V of one layer in host memory, one page table per KV head.

    Attributes
    ----------
    kv : uint16 array [G, P, PAGE * (Dk + Dv)]
        f16 bits. A page's K rows come first ([PAGE, Dk]), then its V rows ([PAGE, Dv]),
        so that one page is one contiguous block.
    ids : int32 array [G, P, PAGE]
        Token position of each row, -1 + 1 = 0 where empty: the value is position + 1,
        so that untouched memory reads as empty.
    fill : int32 array [G, P]
        Rows in use; they are always the first ones of a page.
    n_pages : int32 array [G]
        Pages ever touched; all later ones are empty.
    state : uint8 array [G, P]
        ABSENT, WRITTEN and WANTED; 0 where there is nothing to say.
    tier : DiskTier or None
        Where absent pages are; None while all pages are in memory.
    per_block : int
        Pages that share whole pages of the operating system: memory is given back for so many
        at once. `P` is a multiple of it.
    """

    def __init__(self, shape: ModelShape, n_pages: int) -> None:
        self.shape = shape
        self.arena = Arena()
        self.tier: DiskTier | None = None
        g, width = shape.n_kv_heads, PAGE * (shape.head_dim_k + shape.head_dim_v)
        self.per_block = mmap.PAGESIZE // math.gcd(2 * width, mmap.PAGESIZE)
        self.capacity = n_pages = -(-n_pages // self.per_block) * self.per_block
        self.kv = self.arena.zeros((g, n_pages, width), np.uint16, n_pages * width >= HUGE_FROM)
        self.ids = self.arena.zeros((g, n_pages, PAGE), np.int32)
        self.fill = self.arena.zeros((g, n_pages), np.int32)
        self.state = self.arena.zeros((g, n_pages), np.uint8)
        self.n_pages = np.zeros(g, np.int32)

    @property
    def nbytes_kv(self) -> int:
        """Bytes of K and V pages in memory."""
        if self.tier is not None:
            return self.tier.nbytes_held
        return int(self.n_pages.sum()) * self.kv.strides[1]

    @property
    def nbytes_table(self) -> int:
        """Bytes of the page table that have been touched."""
        return int(self.n_pages.sum()) * (self.ids.strides[1] + self.fill.strides[1])

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's K and V."""
        return self.kv.strides[1]

    def some(self, head: int, numbers: np.ndarray) -> np.ndarray:
        """Copy K and V of pages (int [n]) of a head, from wherever they are.

        uint16 [n, PAGE * (Dk + Dv)].
        """
        if self.tier is not None:
            return self.tier.some(head, numbers)
        return self.kv[head, numbers]

    def rows(self, heads: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copy K and V rows that are in memory; uint16 [n, G, Dk] and [n, G, Dv].

        Parameters
        ----------
        heads : int array [G, 1]
        places : int array [G, n]
            page * PAGE + row.
        """
        dk, dv = self.shape.head_dim_k, self.shape.head_dim_v
        block = self.kv[heads, places // PAGE]
        row = (places % PAGE)[..., None]
        k = np.take_along_axis(block, row * dk + np.arange(dk), axis=2)
        v = np.take_along_axis(block, PAGE * dk + row * dv + np.arange(dv), axis=2)
        return (
            np.ascontiguousarray(k.transpose(1, 0, 2)),
            np.ascontiguousarray(v.transpose(1, 0, 2)),
        )

    def fill_from(self, file: PageFile, last: int | None = None) -> None:
        """Read the pages of a stored layer; the page table is in place and stays.

        With `last`, only those before `last` that hold anything.

        Raises
        ------
        SessionDamagedError
        """
        if last is None:
            heads, pages = np.divmod(np.arange(len(self.kv) * file.n_pages), file.n_pages)
        else:
            heads, pages = np.nonzero(self.fill[:, : min(last, file.n_pages)])
        rows = self.kv.reshape(-1, self.kv.shape[2])
        file.read(file.records(heads, pages), rows, heads * self.capacity + pages)

    def clear(self) -> None:
        """Forget everything and return the memory to the OS."""
        if self.tier is not None:
            self.tier.close()
            self.tier = None
        self.arena.release()
        self.n_pages[:] = 0


class OrderedPages:
    """Rows of one layer in pages by position: token t is row t % 16 of page t // 16.

    Parameters
    ----------
    shape : ModelShape
    k, v : uint16 arrays [n, G, Dk] and [n, G, Dv]
    rows : int64 array [T]
        Which of the n rows, in the order of the tokens.
    """

    def __init__(self, shape: ModelShape, k: np.ndarray, v: np.ndarray, rows: np.ndarray) -> None:
        self.shape = shape
        n_pages = -(-len(rows) // PAGE)
        self.pages = HostPages(shape, n_pages)
        self.pages.n_pages[:] = n_pages
        blocks = []
        for source in (k, v):
            in_pages = np.zeros((n_pages * PAGE, *source.shape[1:]), np.uint16)
            in_pages[: len(rows)] = source[rows]
            by_head = in_pages.transpose(1, 0, 2).reshape(shape.n_kv_heads, n_pages, -1)
            blocks.append(by_head)
        self.pages.kv[:, :n_pages] = np.concatenate(blocks, axis=2)

    def tables(self) -> dict[str, np.ndarray]:
        """Return nothing: the order says it all."""
        return {}

    def page_order(self) -> np.ndarray:
        """Pages by number; int32 [G, pages]."""
        heads, used = len(self.pages.n_pages), int(self.pages.n_pages.max())
        return np.tile(np.arange(used, dtype=np.int32), (heads, 1))
