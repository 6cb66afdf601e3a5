"""Layer reuse: which layers keep the tokens that one before them has chosen, as in IceCache(r)."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_LEADER = 2  # the first layers look at other tokens than those behind them


def searches(place: int, reuse: int) -> bool:
    """Whether the layer at `place` chooses its tokens itself; `reuse` layers follow each."""
    return place < FIRST_LEADER or (place - FIRST_LEADER) % (reuse + 1) == 0


def leaders(n_kv_heads: Sequence[int], reuse: int) -> list[int | None]:
    """Who chooses for each layer.

    Parameters
    ----------
    n_kv_heads : sequence of int
        Of each layer.
    reuse : int
        Layers that follow each one that searches.

    Returns
    -------
    list of int or None
        The place of another layer, or None for one that searches: so does a layer with another
        number of KV heads than the one before it.
    """
    found: list[int | None] = []
    last = 0
    for place, heads in enumerate(n_kv_heads):
        if searches(place, reuse) or heads != n_kv_heads[last]:
            last = place
        found.append(None if last == place else last)
    return found
