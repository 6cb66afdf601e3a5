"""Whether the tables of a stored layer describe a cache that may be used."""

from __future__ import annotations

import numpy as np

from ..config import PAGE
from ..layer_cache import LayerCache
from ..mdci.soundness import is_sound


def check_layer(
    cache: LayerCache, tables: dict[str, np.ndarray], n_tokens: int, n_pages: int
) -> bool:
    """Tell whether every number in `tables` leads somewhere, and no token is lost or doubled.

    Parameters
    ----------
    cache : LayerCache
        New, of the settings that the tables were made with.
    tables : dict of arrays
        None larger than `cache.table_limits()` has it.
    n_tokens : int
        Tokens of the sequence.
    n_pages : int
        Pages per head of the pages file.

    Returns
    -------
    bool
    """
    ids, fill, pages_used = tables["ids"], tables["fill"], tables["n_pages"]
    heads, used = len(cache.pages.n_pages), ids.shape[1]
    if used != n_pages or ids.shape != (heads, used, PAGE) or fill.shape != (heads, used):
        return False
    if pages_used.shape != (heads,) or tables["tail"].shape != (3,):
        return False
    if pages_used.min() < cache.first_leaf or pages_used.max() != used or used > cache.first_copy:
        return False
    if tables["rows"].shape != cache.table_limits()["rows"].shape:
        return False
    if not np.array_equal(ids > 0, np.arange(PAGE) < fill[..., None]):
        return False
    if fill.min() < 0 or fill.max() > PAGE or ids.min() < 0 or ids.max() > n_tokens:
        return False
    if fill[np.arange(used) >= pages_used[:, None]].any():
        return False
    for held in ids:
        if not (np.bincount(held.ravel(), minlength=n_tokens + 1)[1:] == 1).all():
            return False
    tail = tables["tail"].tolist()
    return (
        _tail_is_sound(cache, ids, tail, n_tokens)
        and slots_are_sound(cache, tables["token_in"], n_tokens)
        and is_sound(
            {n.removeprefix("index."): a for n, a in tables.items() if n.startswith("index.")},
            fill,
            pages_used,
            cache.first_leaf,
        )
    )


def _tail_is_sound(cache: LayerCache, ids: np.ndarray, tail: list[int], n_tokens: int) -> bool:
    """Whether sink and tail, and no other token, lie in the pages below the leaves."""
    stored, start, ring_row = tail
    n_rows, sink = cache.tail.n_rows, cache.config.sink
    if stored != n_tokens or not sink <= start <= n_tokens or n_tokens - start > n_rows:
        return False
    if not 0 <= ring_row < n_rows or ring_row % PAGE:
        return False
    rows = ids[:, : cache.first_leaf].reshape(len(ids), -1)
    tail_rows = cache.tail.first_page * PAGE + (ring_row + np.arange(n_tokens - start)) % n_rows
    return (
        np.count_nonzero(rows) == len(ids) * (sink + n_tokens - start)
        and bool((rows[:, :sink] == np.arange(1, sink + 1)).all())
        and bool((rows[:, tail_rows] == np.arange(start + 1, n_tokens + 1)).all())
    )


def slots_are_sound(cache: LayerCache, token_in: np.ndarray, n_tokens: int) -> bool:
    """Whether no token sits in two slots of a head."""
    if token_in.shape != cache.slots.token_in.shape:
        return False
    if token_in.min(initial=0) < 0 or token_in.max(initial=0) > n_tokens:
        return False
    ordered = np.sort(token_in, axis=1)
    return not ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any()
