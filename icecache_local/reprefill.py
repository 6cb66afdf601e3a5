"""Selective re-prefill: a new question reads only those stored pages that it attends to."""

from __future__ import annotations

import numpy as np

from .layer_cache import LayerCache
from .page_scores import page_masses

AHEAD_FROM = 0.9  # share of the latest guess that must have been right to read the next one ahead


class Reprefill:
    """Chooses pages of a stored prefix for the queries of new tokens, layer by layer.

    After ContiguousKV (January 2026): layers form periods; at a period's first layer every page
    is scored by the summed softmax attention of the new queries, and the choice serves the
    period. What differs: pages are scored by the index (means and variances of their keys, all
    in memory), so that no keys are read for it; whole buckets are chosen, whose pages lie side by
    side on the disk; and since pages hold other tokens in every layer and head, a choice is
    carried over as attention mass of *positions*. The same mass tells what to read ahead for the
    next layer, where it has been right so far; once that has chosen, only the difference is read.

    Parameters
    ----------
    share : float
        Share of the indexed pages of each KV head that are read.
    period : int
        Layers that one scoring serves.
    """

    def __init__(self, share: float, period: int = 1) -> None:
        self.share, self.period = share, period
        self._mass = np.zeros(0, np.float32)
        self._guess: np.ndarray | None = None
        self._hit = 0.0  # share of the latest choice that had been guessed

    def choose(self, place: int, cache: LayerCache, q: np.ndarray, scale: float) -> np.ndarray:
        """Pages to attend to.

        Parameters
        ----------
        place : int
            The layer's place among those with a cache.
        cache : LayerCache
        q : float32 array [T, H, Dk]
        scale : float

        Returns
        -------
        int32 array [G, k]
            Page numbers, then -1.
        """
        if place % self.period:
            return self.guess(cache)
        leaves = leaves_of(cache)
        masses = page_masses(cache, leaves, q, scale)
        chosen = self._best(leaves, masses)
        self._learn(place, chosen)
        self._mass = np.zeros(cache.n_tokens + 1, np.float32)
        for g, (pages, _) in enumerate(leaves):
            mass = np.zeros(cache.pages.capacity, np.float32)
            mass[pages] = masses[g]
            pages = chosen[g, chosen[g] >= 0]
            each = mass[pages] / cache.pages.fill[g, pages]
            # A token is in one page of a head: no position comes twice, but that of empty rows.
            self._mass[cache.pages.ids[g, pages]] += each[:, None]
            cache.pages.tier.importance[g, pages] += mass[pages]
        self._mass[0] = 0  # the id of empty rows
        return chosen

    def _learn(self, place: int, chosen: np.ndarray) -> None:
        """Compare the choice with what had been guessed for it."""
        if place and self._guess is not None and self._guess.shape[0] == chosen.shape[0]:
            found = [np.isin(a, b).mean() for a, b in zip(chosen, self._guess, strict=True)]
            self._hit = float(np.mean(found))

    def ahead(self, place: int, cache: LayerCache) -> np.ndarray | None:
        """Pages that the layer at `place` is likely to choose; None where that is not sure."""
        self._guess = self.guess(cache)
        is_sure = place % self.period > 0 or self._hit >= AHEAD_FROM
        return self._guess if is_sure else None

    def guess(self, cache: LayerCache) -> np.ndarray:
        """Pages of a layer that hold the positions which the latest scoring chose; as `choose`."""
        leaves = leaves_of(cache)
        masses = [
            self._mass[cache.pages.ids[g, pages]].sum(axis=1) for g, (pages, _) in enumerate(leaves)
        ]
        return self._best(leaves, masses)

    def _best(
        self, leaves: list[tuple[np.ndarray, np.ndarray]], masses: list[np.ndarray]
    ) -> np.ndarray:
        """Return the buckets with most mass per page; what is too much is cut off the last one."""
        k = max(1, int(np.ceil(self.share * max(len(pages) for pages, _ in leaves))))
        chosen = np.full((len(leaves), k), -1, np.int32)
        for g, (pages, bucket) in enumerate(leaves):
            if len(pages):
                size = np.bincount(bucket)
                worth = np.bincount(bucket, masses[g]) / size
                rank = np.empty(len(size), np.int64)
                rank[np.argsort(-worth)] = np.arange(len(size))
                best = pages[np.argsort(rank[bucket], kind="stable")[:k]]
                chosen[g, : len(best)] = best
        return chosen


def leaves_of(cache: LayerCache) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leaves and their buckets of every head; see `MDCIndex.leaves`."""
    return [cache.index.leaves(g) for g in range(cache.shape.n_kv_heads)]
