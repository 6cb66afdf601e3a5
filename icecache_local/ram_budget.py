"""RamBudget: one limit for the pages of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import PAGE
from .disk_tier import DiskTier


class RamBudget:
    """Divides the memory for K and V pages among the layers of a sequence.

    *Decoding*, every layer has the same share of its pages in memory. *Reading* attends to all
    tokens, one layer after the other: the layer at work is in memory as a whole, and the next
    one, where there is room for two, is read while it computes; the others keep what the limit
    leaves them, so that only the rest of each layer is streamed.

    Parameters
    ----------
    limit : int or None
        Bytes; None: no limit, the tiers only hold pages that have not been read yet.
    tiers : sequence of DiskTier
        In the order in which the layers are computed.
    """

    def __init__(self, limit: int | None, tiers: Sequence[DiskTier]) -> None:
        self.limit, self.tiers = limit, list(tiers)
        self._shares: list[int | None] = [None] * len(self.tiers)
        self._decoding = False
        self._ahead = True

    def begin(self, n_new: int, reading: bool, part: float = 1.0) -> None:
        """Prepare for a decode step, or for `reading` `n_new` tokens.

        Reading stands for every act that needs a `part` of a layer, one layer at a time.
        """
        if self.limit is not None and (reading or not self._decoding):
            room = self.limit
            if reading:
                largest = int(part * max(tier.nbytes_after(n_new) for tier in self.tiers))
                self._ahead = self.limit >= 2 * largest
                room = max(0, room - largest * (1 + self._ahead))
            self._divide(room)
        self._decoding = not reading

    def _divide(self, room: int) -> None:
        total = sum(tier.nbytes for tier in self.tiers)
        self._shares = [room * tier.nbytes // max(1, total) for tier in self.tiers]
        for tier, share in zip(self.tiers, self._shares, strict=True):
            tier.trim(share)

    @property
    def failed(self) -> bool:
        """Whether a layer's pages may be lost."""
        return any(tier.disk.failed for tier in self.tiers)

    def enter(self, tier: DiskTier) -> None:
        """Bring all pages of a layer into memory, and begin with those of the next one."""
        place = self.tiers.index(tier)
        tier.trim(None)
        tier.fetch_all()
        if self._ahead and place + 1 < len(self.tiers):
            self.tiers[place + 1].trim(None)
            self.tiers[place + 1].prefetch_all()

    def enter_with(self, tier: DiskTier, chosen: np.ndarray) -> None:
        """Bring `chosen` pages (int32 [G, k], then -1) of a layer into memory."""
        tier.trim(None)
        tier.fetch(_first_rows(chosen))

    def read_ahead(self, tier: DiskTier, chosen: np.ndarray) -> None:
        """Begin to read pages that the next layer is likely to choose."""
        if self._ahead:
            tier.trim(None)
            tier.prefetch(_first_rows(chosen))

    def leave(self, tier: DiskTier) -> None:
        """Return to the layer's share."""
        tier.trim(self._shares[self.tiers.index(tier)])


def _first_rows(pages: np.ndarray) -> np.ndarray:
    """Places of the first rows of `pages`, -1 for -1."""
    return np.where(pages < 0, -1, pages * PAGE).astype(np.int32)
