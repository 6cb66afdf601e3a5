"""SlotTable: which token sits in which slot, per KV head of one layer."""

from __future__ import annotations

import numba
import numpy as np

from .memory import Arena


class SlotTable:
    """Slots of one layer; every KV head fills all of them with distinct tokens.

    Attributes
    ----------
    token_in : int32 array [G, S]
        Position + 1 of the token in each slot, 0 where the slot holds nothing valid.
    slot_of : int32 array [G, n_ctx]
        Slot + 1 of each position, 0 where it is not resident.
    miss_slots, miss_places : int32 arrays [G, S]
        The last `assign`'s uploads: the slot to fill and the host place (page * 16 + row).
    n_miss : int32 array [G]
        How many of them are valid.
    no_rest : int32 array [G]
        -1 for every head, see `assign`.
    """

    def __init__(self, n_heads: int, n_slots: int, n_ctx: int) -> None:
        self.arena = Arena()
        self.token_in = np.zeros((n_heads, n_slots), np.int32)
        self.slot_of = self.arena.zeros((n_heads, n_ctx), np.int32)
        self.miss_slots = np.zeros((n_heads, n_slots), np.int32)
        self.miss_places = np.zeros((n_heads, n_slots), np.int32)
        self.n_miss = np.zeros(n_heads, np.int32)
        self.no_rest = np.full(n_heads, -1, np.int32)
        self._kept = np.zeros((n_heads, n_slots), np.bool_)

    @property
    def n_slots(self) -> int:
        """Slots per KV head."""
        return self.token_in.shape[1]

    def assign(self, tokens: np.ndarray, places: np.ndarray, rest: np.ndarray | None = None) -> int:
        """Make exactly `tokens` resident: keep what is there, give freed slots to the rest.

        Parameters
        ----------
        tokens : int32 array [G, S]
            Positions, distinct within a head.
        places : int32 array [G, S]
            Their places in the host tier.
        rest : int32 array [G], optional
            Place of a row that takes the slot of a head's last token, or -1. It is no token:
            `token_in` of its slot is 0.

        Returns
        -------
        int
            Tokens to upload, summed over heads; see `miss_slots` and `miss_places`.
        """
        _assign(tokens, places, self.no_rest if rest is None else rest, self.arrays)
        return int(self.n_miss.sum())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `assign_head` reads and writes."""
        tables = self.token_in, self.slot_of, self._kept
        return *tables, self.miss_slots, self.miss_places, self.n_miss

    def load(self, token_in: np.ndarray) -> None:
        """Declare what the slots hold.

        Parameters
        ----------
        token_in : int32 array [G, S] or [S]
            As the attribute.
        """
        self.clear()
        self.token_in[:] = token_in
        heads, slots = np.nonzero(self.token_in)
        self.slot_of[heads, self.token_in[heads, slots] - 1] = slots + 1

    def truncate(self, n_tokens: int) -> None:
        """Forget every token at position >= `n_tokens`; its slot holds nothing valid."""
        self.token_in[self.token_in > n_tokens] = 0
        self.slot_of[:, n_tokens:] = 0

    def clear(self) -> None:
        """Forget every token."""
        self.token_in[:] = 0
        self.arena.release()

    def check_integrity(self) -> None:
        """Raise AssertionError unless tokens and slots name each other, one to one."""
        for head, tokens in enumerate(self.token_in):
            slots = np.flatnonzero(tokens)
            positions = tokens[slots] - 1
            assert len(np.unique(positions)) == len(positions), f"head {head}: a token twice"
            assert np.array_equal(self.slot_of[head, positions], slots + 1), (
                f"head {head}: slot_of and token_in disagree"
            )
            assert np.count_nonzero(self.slot_of[head]) == len(slots), (
                f"head {head}: slot_of names a token that is not resident"
            )


@numba.njit(cache=True, nogil=True)
def assign_head(g, tokens, places, rest, slots):
    """One pass: mark what stays, then hand the other slots to what is missing."""
    token_in, slot_of, kept = slots[0][g], slots[1][g], slots[2][g]
    miss_slots, miss_places, n_miss = slots[3][g], slots[4][g], slots[5]
    kept[:] = False
    misses = 0
    for i in range(tokens.shape[1] - (rest[g] >= 0)):
        slot = slot_of[tokens[g, i]] - 1
        if slot >= 0:
            kept[slot] = True
        else:
            miss_places[misses] = i  # index into tokens, replaced by its place below
            misses += 1
    n_miss[g] = misses + (rest[g] >= 0)
    slot = 0
    for m in range(n_miss[g]):
        while kept[slot]:
            slot += 1
        if token_in[slot] > 0:
            slot_of[token_in[slot] - 1] = 0
        if m == misses:
            token_in[slot], miss_slots[m], miss_places[m] = 0, slot, rest[g]
            break
        i = miss_places[m]
        token_in[slot] = tokens[g, i] + 1
        slot_of[tokens[g, i]] = slot + 1
        miss_slots[m] = slot
        miss_places[m] = places[g, i]
        slot += 1


@numba.njit(cache=True, nogil=True)
def _assign(tokens, places, rest, slots):
    for g in range(tokens.shape[0]):
        assign_head(g, tokens, places, rest, slots)
