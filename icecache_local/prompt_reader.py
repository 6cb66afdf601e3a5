"""PromptReader: which pages of the host tier a prompt's tokens attend to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._native import ffi
from .layer_cache import LayerCache
from .ram_budget import RamBudget
from .reprefill import Reprefill


class PromptReader:
    """Has a prompt attend to all pages, or to a share of those of a session that was opened.

    Parameters
    ----------
    selective : float or None
        The share, see `CacheConfig`.
    """

    def __init__(self, selective: float | None) -> None:
        self.reprefill = None if selective is None else Reprefill(selective)

    def part(self, budget: RamBudget) -> float:
        """Share of a layer's pages that will be in memory at once."""
        return self.reprefill.share if self._is_selective(budget) else 1.0

    def _is_selective(self, budget: RamBudget) -> bool:
        return self.reprefill is not None and all(t.disk.has_source for t in budget.tiers)

    def attend(
        self,
        layer: ffi.CData,
        cache: LayerCache,
        cells: np.ndarray,
        caches: Sequence[LayerCache],
        budget: RamBudget | None,
    ) -> None:
        """Compute a layer's attention of the new tokens, and write it over llama.cpp's.

        Parameters
        ----------
        layer : ice_layer
        cache : LayerCache
            Whose pages and cells are attended to.
        cells : int64 array [T]
            Cells of the new tokens.
        caches : sequence of LayerCache
            All of them, in the order in which they are computed.
        budget : RamBudget or None
            None where all pages are in memory.
        """
        fill = None if budget is None else self._bring(layer, cache, caches, budget)
        cache.device.attend(layer, cache.pages, cells, fill)

    def _bring(
        self, layer: ffi.CData, cache: LayerCache, caches: Sequence[LayerCache], budget: RamBudget
    ) -> np.ndarray | None:
        """Bring the pages into memory; tokens of each that count, [G, P], None for all."""
        pages, tier = cache.pages, cache.pages.tier
        if not self._is_selective(budget):
            budget.enter(tier)
            return None
        place = caches.index(cache)
        chosen = self.reprefill.choose(place, cache, cache.device.queries(layer), layer.scale)
        budget.enter_with(tier, chosen)
        for following in caches[place + 1 : place + 2]:
            ahead = self.reprefill.ahead(place + 1, following)
            if ahead is not None:
                budget.read_ahead(following.pages.tier, ahead)
        fill = np.zeros_like(pages.fill)
        fill[:, : cache.first_leaf] = pages.fill[:, : cache.first_leaf]
        for g, numbers in enumerate(chosen):
            numbers = numbers[numbers >= 0]
            fill[g, numbers] = pages.fill[g, numbers]
        return fill
