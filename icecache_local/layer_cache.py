"""LayerCache: one layer's host tier, index and slots once the sequence has outgrown the cells."""

from __future__ import annotations

import time

import numpy as np

from .admission import Admission
from .config import PAGE, CacheConfig, ModelShape
from .decode_step import DecodeStep
from .device.base import Device
from .disk_tier import DiskTier
from .follower import Follower
from .host_pages import HostPages
from .layer_tables import LayerTables
from .mdci import MDCIndex
from .replacement import credit
from .selection import Selector
from .slots import SlotTable
from .stats import Counters
from .tail_ring import TailRing


class LayerCache(LayerTables):
    """K and V of every token of one layer, and the choice of those that are resident.

    Pages of the host tier, per KV head::

        | sink | tail ring: newest tokens in order | leaves of the index | copies | remainder |
        0      first_tail                          first_leaf            first_copy

    The tail holds the window and the tokens not yet indexed; full pages older than the window
    move to the index. Copies are rows of a reopened session's resident tokens, in the order of the
    slots: they can be scored and restored while their pages are on the disk.

    Parameters
    ----------
    layer : int
        llama.cpp's layer number.
    shape : ModelShape
    config : CacheConfig
    device : Device
        The layer's cells.
    cells : int32 array [C]
        Cells of the carriers; the first `config.sink` hold the sink for ever.
    n_ctx, n_batch : int
        Most tokens of the sequence, and of one ubatch.
    counters : Counters
        Shared by all layers.
    window : int, optional
        Latest tokens that stay outside of the index, by default `config.window`.
    softcap : float
        Bound of the attention logits, 0 for none. Beyond it a single key cannot stand for many:
        such layers have no remainder. Nor have those whose values are a part of their keys.
    """

    def __init__(
        self,
        layer: int,
        shape: ModelShape,
        config: CacheConfig,
        device: Device,
        cells: np.ndarray,
        n_ctx: int,
        n_batch: int,
        counters: Counters,
        window: int | None = None,
        softcap: float = 0,
    ) -> None:
        self.shape, self.config, self.device, self.counters = shape, config, device, counters
        self.window = config.window if window is None else window
        self.n_batch = n_batch
        self.n_tokens = 0
        first_tail = -(-config.sink // PAGE)
        self.first_leaf = first_tail + -(-(self.window + PAGE + n_batch) // PAGE) + 1
        self.first_copy = self.first_leaf + MDCIndex.pages_for(n_ctx)
        self._n_copies = -(-(len(cells) - config.sink) // PAGE)
        rest_page = self.first_copy + self._n_copies
        self.pages = HostPages(shape, rest_page + 1)
        self.tail = TailRing(self.pages, first_tail, self.first_leaf, config.sink)
        self.index = MDCIndex(self.pages, self.first_leaf, config, layer)
        if config.ram_limit is not None:
            DiskTier(self.pages, self.first_leaf)
        self.place(cells)
        self.slots = SlotTable(shape.n_kv_heads, len(self.slot_cells), n_ctx)
        has_rest = config.remainder and not softcap and shape.head_dim_v
        self.selector = Selector(
            *(self.pages, shape, len(self.slot_cells)),
            rest_page if has_rest else -1,
        )
        self._admission = Admission(
            *(self.pages, self.first_leaf, self.first_copy),
            *(len(self.slot_cells), config.most_unread),
        )
        self.chosen_by = self.selector  # of whichever layer
        self._follower: Follower | None = None
        self._n_ctx = n_ctx
        self._inserting: np.ndarray | None = None  # pages that are being indexed
        chooses_itself = type(self).choose is LayerCache.choose
        at_once = chooses_itself and device.in_place
        self._step = DecodeStep(self) if at_once else None

    def follow(self, leader: LayerCache) -> None:
        """Keep the tokens that `leader` has chosen in the same step, instead of searching.

        While pages are on the disk, the layer searches nevertheless: what another one has chosen
        would have to be read.
        """
        self._follower = Follower(self, leader, self._n_ctx)

    def place(self, cells: np.ndarray) -> None:
        """Use these cells (int32 [C]) for sink and slots; what they hold stays as it is."""
        self.sink_cells, self.slot_cells = np.split(cells, [self.config.sink])

    def _tail_pages(self) -> np.ndarray:
        """Pages of the tail, the oldest first; int32 [n]."""
        return self.tail.pages_of(max(0, self.n_tokens - self.tail.start))

    def append(self, cells: np.ndarray, finish: bool = True) -> None:
        """Copy the tokens that follow the last one from `cells` (int64 [T]) to the host tier.

        Without `finish`, an insertion into the index that has to wait for the disk is left
        half done: `finish` must be called before anything else is.
        """
        self.append_rows(*self.device.rows(cells), finish)

    def append_rows(
        self, k: np.ndarray, v: np.ndarray, rows: np.ndarray, finish: bool = True
    ) -> None:
        """Copy the tokens that follow the last one to the host tier.

        Parameters
        ----------
        k, v : uint16 arrays [n, G, Dk] and [n, G, Dv]
        rows : int64 array [T]
            Which of the n rows, in the order of the tokens.
        finish : bool
            See `append`.
        """
        self.tail.append(k, v, rows, self.n_tokens)
        self.n_tokens += len(rows)
        n_old = (self.n_tokens - self.tail.start - self.window) // PAGE
        if n_old > 0:
            pages = self.tail.pages_of(n_old * PAGE)
            is_done = self.index.begin_insert(pages)
            self._inserting = pages
            if is_done or finish:
                self.finish()

    def finish(self) -> None:
        """Finish the insertion that `append` has begun."""
        if self._inserting is None:
            return
        pages, self._inserting = self._inserting, None
        self.index.finish_insert()
        if self.pages.tier is not None:
            self.pages.tier.make_room()
        self.tail.release(pages)

    def load(self, q: np.ndarray, scale: float, real_from: int) -> None:
        """Make the tokens resident that matter to `q`.

        Parameters
        ----------
        q : float32 array [H, Dk]
            Queries of the newest token, after RoPE.
        scale : float
            Factor of q.k in the softmax.
        real_from : int
            Tokens from here on sit in cells of their own.
        """
        self.chosen_by = self.selector
        if self._follower is not None and self.pages.tier is None:
            self.chosen_by = self._follower.leader.chosen_by
            self._follower.run(self._tail_pages())
        elif self._step is None or self.pages.tier is not None:
            self._load_in_stages(q, scale, real_from)
        else:
            self._step.run(q, scale, self._tail_pages(), real_from)
        self.counters.selected_rows += self.slots.token_in.size
        self.counters.uploaded_rows += int(self.slots.n_miss.sum())

    def _load_in_stages(self, q: np.ndarray, scale: float, real_from: int) -> None:
        tokens, places = self.choose(q, scale, real_from)
        counters, start = self.counters, time.perf_counter_ns()
        slots = self.slots
        slots.assign(tokens, places, self.selector.rest)
        start = counters.add_stage("assign", start)
        self.device.upload(
            self.pages, self.slot_cells, slots.miss_slots, slots.miss_places, slots.n_miss
        )
        counters.add_stage("upload", start)

    def choose(self, q: np.ndarray, scale: float, real_from: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens for all slots: positions and places in the host tier, int32 [G, n_slots] each.

        The arguments are those of `load`.
        """
        counters, start = self.counters, time.perf_counter_ns()
        candidates = self.index.query(q, scale)
        start = counters.add_stage("query", start)
        tier = self.pages.tier
        if tier is not None:
            tier.settle()
            if self.config.most_unread > 0:
                self._admission.admit(
                    *(q * np.float32(scale), candidates, self.index.log_weights()),
                    *(self.index.log_mass, self.slots.slot_of, self.selector.unread),
                )
            tier.fetch(candidates)
            start = counters.add_stage("fetch", start)
        chosen = self.selector.select(
            q,
            scale,
            candidates,
            self._tail_pages(),
            forced_from=self.n_tokens - self.window,
            excluded_from=real_from,
            log_mass=self.index.log_mass,
            n_sink_pages=self.tail.first_page,
        )
        if tier is not None:
            credit(tier.importance, chosen[1], self.selector.weights)
        counters.add_stage("select", start)
        return chosen

    def rewrite(self, cell: int, position: int) -> None:
        """Write the sink, and the token at `position` into `cell`; the slots hold nothing valid.

        `position` must be in the tail.
        """
        self.slots.clear()
        self.restore(self.sink_cells, 0)
        g = self.shape.n_kv_heads
        self.device.upload(
            self.pages,
            np.array([cell], np.int32),
            np.zeros((g, 1), np.int32),
            np.full((g, 1), self.tail.place(position), np.int32),
            np.ones(g, np.int32),
        )

    def restore(self, cells: np.ndarray, first: int) -> None:
        """Write the tokens at positions `first`, `first` + 1, ... into `cells` (int32 [n])."""
        places = self._places(first, first + len(cells))
        if self.pages.tier is not None:
            self.pages.tier.fetch(places)
        slots = np.broadcast_to(np.arange(len(cells), dtype=np.int32), places.shape)
        n = np.full(len(places), len(cells), np.int32)
        self.device.upload(self.pages, cells, np.ascontiguousarray(slots), places, n)

    def truncate(self, n_tokens: int) -> None:
        """Drop every token at position >= `n_tokens`, which must leave sink and window whole."""
        self.finish()
        if n_tokens >= self.n_tokens:
            return
        tier = self.pages.tier
        window_start = n_tokens - self.window
        if window_start >= self.tail.start:
            self.tail.cut(self.n_tokens, n_tokens)
            self.n_tokens = n_tokens
        else:
            if tier is not None:
                tier.fetch_all()
            k, v = self.rows(window_start, n_tokens)
            self.index.truncate(window_start)
            self.tail.begin(window_start)
            self.n_tokens = window_start
            self.append_rows(k, v, np.arange(self.window))
            if tier is not None:
                tier.make_room()
        self.slots.truncate(n_tokens)
        copies = self._copied
        copies[copies > n_tokens] = 0

    @property
    def _copied(self) -> np.ndarray:
        """Position + 1 of each copy, or 0; int32 [G, copies, PAGE]."""
        return self.pages.ids[:, self.first_copy : self.first_copy + self._n_copies]

    def _places(self, first: int, last: int) -> np.ndarray:
        """Places of the tokens at positions [first, last) per KV head; int32 [G, last - first]."""
        places = np.zeros((self.shape.n_kv_heads, last - first), np.int32)
        in_tree = last > self.config.sink and first < self.tail.start
        for g, out in enumerate(places):
            ids = self.pages.ids[g, : self.pages.n_pages[g] if in_tree else self.first_leaf].ravel()
            rows = np.flatnonzero((ids > first) & (ids <= last))
            out[ids[rows] - 1 - first] = rows
        return places

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Copy K and V of positions [first, last); uint16 [n, G, Dk] and [n, G, Dv]."""
        places = self._places(first, last)
        if self.pages.tier is not None:
            self.pages.tier.fetch(places)
        return self.pages.rows(np.arange(len(places))[:, None], places)

    # -- inspection ----------------------------------------------------------------------------

    @property
    def nbytes_index(self) -> int:
        """Bytes of index, page table and slot table in use."""
        slot_table = self.slots.slot_of[:, : self.n_tokens].nbytes + self.slots.token_in.nbytes
        places = self._follower.nbytes if self._follower is not None else 0
        return self.index.nbytes + self.pages.nbytes_table + slot_table + places

    def fill_slots(self) -> None:
        """Write every valid slot's token into its cell, as the slot table has it."""
        slots = self.slots
        slots.n_miss[:] = np.count_nonzero(slots.token_in, axis=1)
        copied = self._copied.reshape(len(slots.token_in), -1)[:, : slots.n_slots]
        for g, row in enumerate(slots.token_in):
            valid = np.flatnonzero(row)
            slots.miss_slots[g, : len(valid)] = valid
            slots.miss_places[g, : len(valid)] = self.first_copy * PAGE + valid
            slots.miss_places[g, len(valid) :] = -1
            missing = np.flatnonzero(copied[g, valid] != row[valid])
            if len(missing):
                ids = self.pages.ids[g, : self.pages.n_pages[g]].ravel()
                place_of = np.zeros(self.n_tokens + 1, np.int32)
                place_of[ids] = np.arange(len(ids))
                slots.miss_places[g, missing] = place_of[row[valid[missing]]]
        if self.pages.tier is not None:
            self.pages.tier.fetch(slots.miss_places[:, : slots.n_miss.max()])
        self.device.upload(
            self.pages, self.slot_cells, slots.miss_slots, slots.miss_places, slots.n_miss
        )

    def shuffle(self, rng: np.random.Generator) -> None:
        """Permute the resident tokens among the slots, each head for itself."""
        self.slots.load(rng.permuted(self.slots.token_in, axis=1))
        self.fill_slots()

    def check_integrity(self, n_tokens: int) -> None:
        """Raise AssertionError unless each head holds each of `n_tokens` tokens exactly once.

        Also compares the bytes in every valid slot's cell with the host tier's.
        """
        if self.pages.tier is not None:
            self.pages.tier.fetch_all()
        assert self.n_tokens == n_tokens, f"{self.n_tokens} tokens in the layer, not {n_tokens}"
        self.slots.check_integrity()
        self.index.check_integrity()
        rows = np.arange(PAGE)
        for g, used in enumerate(self.pages.n_pages):
            ids, fill = self.pages.ids[g, :used], self.pages.fill[g, :used]
            assert np.array_equal(ids > 0, rows < fill[:, None]), f"head {g}: fill is wrong"
            held = np.sort(ids[ids > 0])
            assert np.array_equal(held, np.arange(1, n_tokens + 1)), f"head {g}: tokens lost"
            place_of = np.zeros(n_tokens + 1, np.int64)
            place_of[ids.ravel()] = np.arange(ids.size)
            slots = np.flatnonzero(self.slots.token_in[g])
            places = place_of[self.slots.token_in[g, slots]][None]
            k, v = self.pages.rows(np.array([[g]]), places)
            k_cells, v_cells, i = self.device.rows(self.slot_cells[slots].astype(np.int64))
            assert np.array_equal(k_cells[i, g], k[:, 0]), f"head {g}: K in a wrong slot"
            assert np.array_equal(v_cells[i, g], v[:, 0]), f"head {g}: V in a wrong slot"
