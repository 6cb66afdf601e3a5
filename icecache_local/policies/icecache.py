"""IceCache: the product's own path, with and without reuse between layers."""

from __future__ import annotations

import numpy as np

from ..reuse import searches
from .base import Policy
from .view import LayerView

REUSE = 2  # layers 2, 5, 8, ... search


class IceCache(Policy):
    """What the product does: an M-DCI tree proposes pages, their best tokens stay.

    Departs from the paper: tokens instead of whole pages are kept (see docs/mdci.md for the
    index), one slot stands for the tokens that were scored and not chosen, and layers 0 and 1 are
    not dense.
    """

    title = "IceCache"
    paper = "https://arxiv.org/abs/2604.10539"
    remainder = True

    def select(self, layer: LayerView, q: np.ndarray, real_from: int) -> np.ndarray:
        """Search the index; int32 [G, n_slots]."""
        return layer.search(q, real_from)


class IceCacheTokens(IceCache):
    """The same with tokens in all slots, none that stands for others: as in the paper."""

    title = "IceCache, tokens only"
    remainder = False


class IceCacheReuse(IceCache):
    """IceCache(r): layers 2, 5, 8, ... search, the two layers behind each keep the same tokens.

    Departs from the paper: layers 0 and 1 search for themselves, they are not dense. A layer
    with another number of KV heads than the one before it searches too.
    """

    title = "IceCache(r)"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._found = np.zeros((0, 0), np.int32)

    def select(self, layer: LayerView, q: np.ndarray, real_from: int) -> np.ndarray:
        """Search, or take over what the last searching layer found; int32 [G, n_slots]."""
        if searches(layer.number, REUSE) or len(self._found) != layer.shape.n_kv_heads:
            self._found = layer.search(q, real_from).copy()
        return self._found
