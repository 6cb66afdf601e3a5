"""KVCache: all layers of one sequence, and what llama.cpp is told about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import llama_cpp
import numba
import numpy as np

from ._native import ffi
from .attention import Attention
from .attribution import Attribution
from .cell_map import CellMap
from .config import CacheConfig, ModelShape
from .device.base import Device
from .device.choose import open_devices
from .errors import ContextFullError, IceCacheError, UnsupportedModelError
from .gguf_info import ModelInfo
from .graph_check import check_graph, layer_shape
from .hook import DECODE, PREFILL, WATCH, Hook
from .layer_cache import LayerCache
from .prompt_reader import PromptReader
from .ram_budget import RamBudget
from .reuse import leaders
from .stats import Counters

if TYPE_CHECKING:
    from .sessions.journal import Journal


class KVCache:
    """The KV cache of one llama.cpp context, larger than the context's own cells.

    *Dense phase*: while everything fits in the cells, llama.cpp works alone.
    *Sparse phase*: the cells of the first C positions, the *carriers*, are kept for ever; all but
    the sink's are slots for selected tokens. llama.cpp believes that they hold early tokens, so
    its causal mask shows them to every query. Behind them only the latest tokens keep cells of
    their own::

        position   0 .. sink | sink .. C | C .. real_from | real_from .. n_tokens
        in cells   sink      | slots     | host tier only | themselves

    Only layers that attend to everything are taken over. Sliding-window layers have cells of
    llama.cpp's own, which forget what is removed here: where there are any, the latest `n_swa`
    tokens keep their cells, on top of the budget. Recurrent layers know no removal at all.

    Parameters
    ----------
    info : ModelInfo
        Which layers attend to everything, and how far the others look back.
    config : CacheConfig
    n_ctx : int
        Most tokens of the sequence.
    n_batch : int
        Most tokens of one ubatch; batches must not be longer.
    n_threads, n_threads_batch : int
        Threads of a decode step and of reading a prompt, as in llama.cpp.
    """

    layer_class = LayerCache  # a subclass may choose tokens in another way

    def __init__(
        self,
        info: ModelInfo,
        config: CacheConfig,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        n_threads_batch: int,
    ) -> None:
        self.info = info
        self.config = config
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.n_swa = info.n_swa
        self.n_cells = config.n_cells(n_batch, self.n_swa)
        self.cells = CellMap(self.n_cells, self.n_swa)
        self.hook = Hook(info.n_layers, n_batch, self._on_layer)
        self.hook.take(info.cached_layers)
        self.devices: dict[int, Device] = {}  # the cells of each layer
        self.layers: dict[int, LayerCache] = {}  # empty in the dense phase
        self.counters = Counters()
        self.attribution: Attribution | None = None  # fed by decode steps if there is one
        self.journal: Journal | None = None  # told of every change of the sparse phase
        most = numba.config.NUMBA_NUM_THREADS
        self._n_threads = {DECODE: min(n_threads, most), PREFILL: min(n_threads_batch, most)}
        self._attention = Attention(n_threads_batch)
        self.budget: RamBudget | None = None  # None while all pages are in memory
        self.reader = PromptReader(config.selective)
        self._last_reader: dict[int, int] = {}  # place of the last attention on a layer's cells

    @property
    def n_tokens(self) -> int:
        """Tokens of the sequence."""
        return self.cells.n_tokens

    @property
    def sparse(self) -> bool:
        """Whether the sequence has outgrown the cells."""
        return bool(self.layers)

    def shape_of(self, layer: int) -> ModelShape:
        """Shape of a layer as the host tier holds it."""
        return layer_shape(self.hook.layers[layer], len(self.devices))

    # -- one llama_decode ----------------------------------------------------------------------

    def bind(self, ctx: object) -> None:
        """Attach to a new llama_context and refuse what cannot be driven exactly.

        Decodes a token to see the graph, and once more to try the hook; the context's memory is
        cleared afterwards.

        Raises
        ------
        UnsupportedModelError
        """
        memory = llama_cpp.llama_get_memory(ctx)
        if memory is None:
            raise UnsupportedModelError(
                "This model has no KV cache (an embedding model?); use llama_cpp.Llama for it."
            )
        model = llama_cpp.llama_get_model(ctx)
        self.cells.bind(memory, recurrent=llama_cpp.llama_model_is_hybrid(model))
        self._probe(ctx, WATCH)
        check_graph(self.info, self.hook, llama_cpp.llama_model_n_swa(model))
        for place in self._probe(ctx, DECODE):
            self._last_reader[self.hook.layers[place].layer] = place
        if self._last_reader.keys() != set(self.info.cached_layers):
            raise UnsupportedModelError(
                "llama.cpp does not tell of every attention layer of this model before it runs; "
                "use llama_cpp.Llama for it."
            )
        owners = {i: self.hook.layers[i] for i in self.info.cached_layers}
        self.devices = open_devices(owners, self.config, self._attention)

    def _probe(self, ctx: object, mode: int) -> list[int]:
        """Decode a first token and forget it; the places that the hook called for, in order."""
        places: list[int] = []
        token = (llama_cpp.llama_token * 1)(0)
        self.hook.on_layer = places.append
        try:
            self.hook.begin(mode)
            code = llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(token, 1))
            self.hook.check()
        finally:
            self.hook.on_layer = self._on_layer
        self.cells.clear()
        if code != 0:
            raise IceCacheError(f"llama.cpp could not evaluate a first token (code {code}).")
        return places

    def begin(self, n_past: int, n_new: int, exact: bool) -> None:
        """Prepare for llama_decode of `n_new` tokens at positions `n_past`, `n_past` + 1, ...

        Parameters
        ----------
        n_past, n_new : int
        exact : bool
            Attend to all tokens even where a single token could use the selection.

        Raises
        ------
        ContextFullError
            More than `n_ctx` tokens.
        """
        if n_past > self.n_tokens:
            raise IceCacheError(f"Position {n_past} follows {self.n_tokens} cached tokens.")
        if n_past + n_new > self.n_ctx:
            raise ContextFullError(
                f"{n_past + n_new} tokens do not fit in n_ctx = {self.n_ctx}: raise n_ctx or "
                f"shorten the conversation."
            )
        self.finish_insertions()
        mode = DECODE if n_new == 1 and not exact else PREFILL
        numba.set_num_threads(self._n_threads[mode])  # holds for the calling thread only
        if not self.truncate(n_past):
            raise IceCacheError(f"The tokens before position {n_past} are gone; read them again.")
        if not self.sparse and n_past + n_new > self.n_cells:
            self.spill()
        if not self.sparse:
            self.hook.begin(WATCH)
            return
        # llama.cpp needs the last position and sliding windows; a decode step keeps as many as the
        # budget allows.
        n_real = self.config.budget - self.cells.n_carriers - 1 if mode == DECODE else 1
        self.cells.keep_real(max(n_real, self.n_swa))
        self.counters.sparse_steps += mode == DECODE
        if self.budget is not None:
            with self._no_page_lost():
                reading = mode == PREFILL
                self.budget.begin(n_new, reading, self.reader.part(self.budget))
        self.hook.begin(mode)

    def end(self, n_new: int) -> None:
        """Take note of a successful llama_decode."""
        cells = self.hook.cells
        if len(cells) != n_new:
            raise UnsupportedModelError(
                f"llama.cpp evaluated {len(cells)} of {n_new} tokens at once; "
                f"set n_batch and n_ubatch to the same value."
            )
        self.cells.append(cells)
        if self.sparse and self.journal is not None:
            self.journal.appended(n_new)
        for tier in self.budget.tiers if self.budget is not None else []:
            tier.prefetch_wanted()  # not earlier: it would slow down what computes

    def fail(self) -> None:
        """Restore the state before a llama_decode that failed."""
        self._leave_journal()
        if not self.cells.forget(self.n_tokens):
            self.clear()  # a recurrent state has no way back
        if self.budget is not None and self.budget.failed:
            self.clear()  # pages may be lost, and the index may know half of its tokens
        for cache in self.layers.values():
            cache.truncate(self.n_tokens)
            cache.slots.clear()  # an upload may have been cut short

    def _on_layer(self, place: int) -> None:
        """Act on one attention; readers find the cells written by the layer that owns them."""
        layer = self.hook.layers[place]
        cache, device = self.layers[layer.layer], self.devices[layer.layer]
        owns = place == layer.layer
        cells = np.frombuffer(ffi.buffer(self.hook.c.cells, 8 * self.hook.c.n_cells), np.int64)
        if owns and self.cells.moved is not None:
            cache.rewrite(self.cells.moved, self.n_tokens - 1)
        if self.hook.c.mode == PREFILL:
            self.reader.attend(layer, cache, cells, list(self.layers.values()), self.budget)
            if place == self._last_reader[layer.layer]:
                cache.append(cells, finish=False)  # attention saw the new tokens in the cells
                if self.budget is not None:
                    self.budget.leave(cache.pages.tier)
            return
        start = time.perf_counter_ns()
        if owns:
            q, rows = device.newest(layer, cells)
            cache.append_rows(*rows)
        else:
            q = device.queries(layer)[0]
        self.counters.add_stage("append", start)
        cache.load(q, layer.scale, self.cells.real_from)
        if self.attribution is not None:
            self.attribution.add(cache.chosen_by.tokens, cache.chosen_by.weights)

    # -- phases --------------------------------------------------------------------------------

    def spill(self) -> None:
        """Enter the sparse phase: copy everything to the host tier, keep the carriers."""
        cells = self.cells.carriers.astype(np.int64)  # of all tokens
        n_carriers = min(self.config.budget - 2, len(cells) - 1)
        layers = self.new_layers(cells[:n_carriers].astype(np.int32))
        for layer in layers.values():
            for first in range(0, len(cells), self.n_batch):
                layer.append(cells[first : first + self.n_batch])
            layer.slots.load(np.arange(self.config.sink, n_carriers, dtype=np.int32) + 1)
        self.set_layers(layers)
        self.cells.begin_sparse(n_carriers)

    def new_layers(self, carriers: np.ndarray) -> dict[int, LayerCache]:
        """Return empty caches of all layers, by number; `carriers` are cells, int32 [C]."""
        for device in self.devices.values():
            device.forget()
        layers = {
            number: self.layer_class(
                number,
                self.shape_of(number),
                self.config,
                device,
                carriers,
                self.n_ctx,
                self.n_batch,
                self.counters,
                window=max(self.config.window, self.n_swa),
                softcap=self.hook.layers[number].softcap,
            )
            for number, device in self.devices.items()
        }
        caches = list(layers.values())
        heads = [cache.shape.n_kv_heads for cache in caches]
        for cache, place in zip(caches, leaders(heads, self.config.reuse_layers), strict=True):
            if place is not None:
                cache.follow(caches[place])
        return layers

    def set_layers(self, layers: dict[int, LayerCache]) -> None:
        """Make `layers` those of the sequence; nothing at all ends the sparse phase."""
        for cache in self.layers.values():
            cache.pages.clear()
        self.layers = layers
        tiers = [cache.pages.tier for cache in layers.values() if cache.pages.tier is not None]
        self.budget = RamBudget(self.config.ram_limit, tiers) if tiers else None

    def truncate(self, n_tokens: int) -> bool:
        """Drop every token at position >= `n_tokens`.

        Returns
        -------
        bool
            False if llama.cpp cannot do this for the model: then everything was dropped.
        """
        if n_tokens >= self.n_tokens:
            return n_tokens == self.n_tokens
        if n_tokens == 0:
            self.clear()
            return True
        self.finish_insertions()
        if not self.cells.windows_reach(n_tokens):
            done = False
        elif not self.sparse:
            done = self.cells.forget(n_tokens)
        elif n_tokens <= self.cells.n_carriers:
            done = self._return_to_dense(n_tokens)
        else:
            done = self._cut(n_tokens)
        if not done:
            self.clear()
            return False
        self.cells.n_tokens = n_tokens
        return True

    def clear(self) -> None:
        """Forget the sequence and give the host tier back."""
        self._leave_journal()
        self.cells.clear()
        self.set_layers({})

    def _return_to_dense(self, n_tokens: int) -> bool:
        """All that is left had a carrier: put each token back into its own cell."""
        if self.cells.moved is not None:
            return False  # llama.cpp has yet to rotate the cells, when nothing can mend them
        if not self.cells.forget(n_tokens):
            return False
        self._leave_journal()
        first = min(self.config.sink, n_tokens)
        for cache in self.layers.values():
            cache.restore(self.cells.carriers[first:n_tokens], first)
        self.set_layers({})
        self.cells.end_sparse()
        return True

    def _cut(self, n_tokens: int) -> bool:
        """Truncate within the sparse phase."""
        if not self.cells.cut(n_tokens):
            return False
        if self.journal is not None:
            self.journal.truncating(n_tokens)
        with self._no_page_lost():
            if self.budget is not None:
                self.budget.begin(0, reading=True)  # layers become whole one by one here too
            for cache in self.layers.values():
                cache.truncate(n_tokens)
        return True

    @contextmanager
    def _no_page_lost(self) -> Iterator[None]:
        """Forget the sequence where the disk fails: pages may be lost."""
        try:
            yield
        except BaseException:
            if self.budget is not None and self.budget.failed:
                self.clear()
            raise

    def finish_insertions(self) -> None:
        """Index what the latest prompt left to be indexed, while pages were read for it."""
        with self._no_page_lost():
            for cache in self.layers.values():
                cache.finish()

    def _leave_journal(self) -> None:
        """Do what no journal can redo."""
        if self.journal is not None:
            self.journal.lost()

    # -- inspection ----------------------------------------------------------------------------

    def shuffle(self, rng: np.random.Generator) -> None:
        """Permute the resident tokens among their slots: attention must not notice."""
        self.finish_insertions()
        for cache in self.layers.values():
            cache.shuffle(rng)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every token is where the tables say, exactly once."""
        self.finish_insertions()
        for cache in self.layers.values():
            cache.check_integrity(self.n_tokens)
