"""What saved states and sessions take from a KVCache, and how it comes back from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cell_map import ranks
from .config import CacheConfig
from .errors import IceCacheError
from .host_pages import HostPages, OrderedPages
from .kv_cache import KVCache
from .layer_cache import LayerCache

# No matter to a state: where K and V lie, how much of them is read, and who searches.
FREE_SETTINGS = (
    *("ram_limit", "unread", "selective", "reuse_layers"),
    *("remainder", "device", "stream_limit"),
)


def state(kv: KVCache) -> dict[str, object]:
    """Return everything beside llama.cpp's own state; see `load_state`."""
    kv.finish_insertions()
    return {
        "settings": _settings(kv),
        "n_tokens": kv.n_tokens,
        "n_real": kv.cells.n_real,
        "moved": kv.cells.moved is not None,
        "cells": kv.cells.in_use,
        "layers": {number: cache.state() for number, cache in kv.layers.items()},
    }


def load_state(kv: KVCache, state: dict[str, object]) -> None:
    """Take over a `state`, after llama.cpp has restored its own; the cache must be empty.

    Raises
    ------
    IceCacheError
        The state is one of other settings.
    """
    if state["settings"] != _settings(kv):
        raise IceCacheError(
            "This state was saved with other cache settings, n_ctx or model shape; "
            "load it with the same ones."
        )
    # llama.cpp restores the cells it held in their order, but from cell 0 on.
    cells, n_real = ranks(state["cells"]), state["n_real"]
    kv.cells.adopt(state["n_tokens"], cells, n_real)
    kv.cells.moved = int(cells[-n_real]) if state["moved"] else None
    if state["layers"]:
        kv.set_layers(kv.new_layers(kv.cells.carriers.copy()))
        for number, cache in kv.layers.items():
            cache.load_state(state["layers"][number])
            if cache.pages.tier is not None:
                cache.pages.tier.trim(kv.config.ram_limit // len(kv.layers))


def _settings(kv: KVCache) -> tuple[object, ...]:
    default = CacheConfig()
    config = replace(kv.config, **{name: getattr(default, name) for name in FREE_SETTINGS})
    return (config, kv.n_ctx, kv.n_batch, [kv.shape_of(i) for i in kv.devices])


def layout(kv: KVCache) -> tuple[np.ndarray, int]:
    """Return the order of the cells in use, as `adopt` takes it: int32 [C + n_real], and n_real.

    In the dense phase C is 0 and n_real is all tokens.
    """
    kv.finish_insertions()
    if not kv.sparse:
        return kv.cells.ranks(), kv.n_tokens
    if kv.cells.moved is not None:  # the slots' cells will be rotated
        for cache in kv.layers.values():
            cache.slots.clear()
    else:  # the next step would do it, and what has no cell need not be restored
        n_real = kv.config.budget - kv.cells.n_carriers - 1
        kv.cells.keep_real(max(n_real, kv.n_swa))
    return kv.cells.ranks(), kv.cells.n_real


def ordered_layers(kv: KVCache) -> dict[int, OrderedPages]:
    """Copy all cells in the dense phase, by layer."""
    cells = kv.cells.carriers.astype(np.int64)
    return {
        number: OrderedPages(kv.shape_of(number), *device.rows(cells))
        for number, device in kv.devices.items()
    }


def adopt(
    kv: KVCache, n_tokens: int, cells: np.ndarray, n_real: int, layers: dict[int, LayerCache]
) -> None:
    """Enter the sparse phase with `layers`; all cells are written.

    Parameters
    ----------
    kv : KVCache
    n_tokens : int
    cells : int32 array [C + n_real]
        Cells of the first C positions and of the latest `n_real`; llama.cpp holds these.
    n_real : int
    layers : dict of int to LayerCache
        By layer, from `KVCache.new_layers`; they need not know their cells.
    """
    carriers, real = np.split(cells, [len(cells) - n_real])
    kv.cells.adopt(n_tokens, cells, n_real)
    kv.set_layers(layers)
    for cache in layers.values():
        cache.place(carriers)
        cache.restore(cache.sink_cells, 0)
        cache.fill_slots()
        cache.restore(real, n_tokens - n_real)


def adopt_dense(kv: KVCache, cells: np.ndarray, pages: dict[int, HostPages]) -> None:
    """Write the tokens at positions 0, 1, ... into `cells` (int32 [n])."""
    kv.cells.adopt(len(cells), cells, 0)
    places = np.arange(len(cells), dtype=np.int32)
    for number, device in kv.devices.items():
        heads = kv.shape_of(number).n_kv_heads
        rows, n = np.tile(places, (heads, 1)), np.full(heads, len(cells), np.int32)
        device.upload(pages[number], cells, rows, rows, n)
