"""LayerTables: what is stored of a layer, and how a layer comes back from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .config import PAGE
from .disk_tier import DiskTier
from .memory import is_begin

if TYPE_CHECKING:
    from .sessions.page_file import PageFile


class LayerTables:
    """The part of `LayerCache` that sessions and saved states go through."""

    def tables(self) -> dict[str, np.ndarray]:
        """Everything but K and V: page table up to the last page in use, tail, slots, index."""
        used = int(self.pages.n_pages.max())
        return {
            "ids": self.pages.ids[:, :used],
            "fill": self.pages.fill[:, :used],
            "n_pages": self.pages.n_pages.copy(),
            "tail": np.array([self.n_tokens, self.tail.start, self.tail.row]),
            "token_in": self.slots.token_in.copy(),
            "rows": self._slot_rows(),
        } | {f"index.{name}": array for name, array in self.index.state().items()}

    def page_order(self) -> np.ndarray:
        """Pages in the order in which they should lie on a disk; int32 [G, pages in use].

        Those below the leaves come first, then the leaves, siblings together, then free pages.
        """
        used = int(self.pages.n_pages.max())
        order = np.zeros((len(self.pages.n_pages), used), np.int32)
        for g, row in enumerate(order):
            leaves, _ = self.index.leaves(g)
            rest = np.ones(used, bool)
            rest[: self.first_leaf] = rest[leaves] = False
            row[:] = np.concatenate([np.arange(self.first_leaf), leaves, np.flatnonzero(rest)])
        return order

    def _slot_rows(self) -> np.ndarray:
        """K and V in the cells of all valid slots, in pages by slot; uint16 [G, copies, width]."""
        k, v, at = self.device.rows(self.slot_cells.astype(np.int64))
        heads, n_slots = self.slots.token_in.shape
        parts = []
        for rows in (k, v):
            part = np.zeros((heads, self._n_copies * PAGE, rows.shape[2]), np.uint16)
            part[:, :n_slots] = rows[at].transpose(1, 0, 2)
            part[:, :n_slots][self.slots.token_in == 0] = 0
            parts.append(part.reshape(heads, self._n_copies, -1))
        return np.concatenate(parts, axis=2)

    def table_limits(self) -> dict[str, np.ndarray]:
        """Arrays as large as those of `tables` may be."""
        return {
            "ids": self.pages.ids,
            "fill": self.pages.fill,
            "n_pages": self.pages.n_pages,
            "tail": np.zeros(3, np.int64),
            "token_in": self.slots.token_in,
            "rows": self.pages.kv[:, : self._n_copies],
        } | {f"index.{name}": array for name, array in self.index.arrays().items()}

    def tables_in_place(self) -> dict[str, np.ndarray]:
        """Those arrays of `table_limits` of which `load_tables` takes a filled view as it is."""
        small = ("n_pages", "tail", "token_in", "rows", "index.n_pages", "index.meta")
        return {name: a for name, a in self.table_limits().items() if name not in small}

    def load_tables(self, tables: dict[str, np.ndarray]) -> None:
        """Take over the arrays of `tables`; the cache must be new, and K and V are not touched."""
        used = tables["ids"].shape[1]
        for target, array in ((self.pages.ids, tables["ids"]), (self.pages.fill, tables["fill"])):
            if not is_begin(target, array):
                target[:, :used] = array
        self.pages.n_pages[:] = tables["n_pages"]
        self.n_tokens, self.tail.start, self.tail.row = tables["tail"].tolist()
        self.slots.load(tables["token_in"])
        if "rows" in tables:
            copies = slice(self.first_copy, self.first_copy + self._n_copies)
            self.pages.kv[:, copies] = tables["rows"]
            places = self.first_copy * PAGE + np.arange(self.slots.n_slots)
            self.pages.ids.reshape(len(self.pages.ids), -1)[:, places] = tables["token_in"]
        index = {n.removeprefix("index."): a for n, a in tables.items() if n.startswith("index.")}
        self.index.load_state(index)

    def load_pages(self, file: PageFile, lazy: bool) -> None:
        """Take K and V from a file, after the tables.

        Parameters
        ----------
        file : PageFile
            Pages by the numbers that they have here.
        lazy : bool
            Indexed pages come when they are needed; the file may be closed nevertheless.

        Raises
        ------
        SessionDamagedError
        """
        if not lazy:
            self.pages.fill_from(file)
            return
        tier = self.pages.tier or DiskTier(self.pages, self.first_leaf)
        tier.open_source(file)
        tier.n_copies = self.shape.n_kv_heads * self._n_copies
        self.pages.fill_from(file, self.first_leaf)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `load_state` makes an equal cache."""
        tables = {name: array.copy() for name, array in self.tables().items() if name != "rows"}
        heads, used = range(len(tables["ids"])), np.arange(tables["ids"].shape[1])
        return tables | {"kv": np.stack([self.pages.some(g, used) for g in heads])}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over the arrays of `state`; the cache must be new."""
        self.pages.kv[:, : state["kv"].shape[1]] = state["kv"]
        self.load_tables({name: array for name, array in state.items() if name != "kv"})
