"""CellMap: which of llama.cpp's cells hold which positions of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np

from .errors import IceCacheError


class CellMap:
    """The positions that llama.cpp believes to hold, and the cells in which they lie.

    In the dense phase every position has its cell. In the sparse phase the first C, the
    *carriers*, and the latest do; llama.cpp is told to forget those in between::

        position   0 .. C      | C .. real_from | real_from .. n_tokens
        cell       a carrier's | none           | its own

    Parameters
    ----------
    n_cells : int
    n_swa : int
        The largest sliding window of the model, 0 without any.

    Attributes
    ----------
    n_tokens : int
        Length of the sequence.
    n_carriers : int
        C; 0 in the dense phase.
    moved : int or None
        A cell whose K and V are not those of its position.
    """

    def __init__(self, n_cells: int, n_swa: int) -> None:
        self.n_tokens = self.n_carriers = 0
        self.moved: int | None = None
        self._n_swa = n_swa
        self._of = np.zeros(n_cells, np.int32)  # cells of [0, n_tokens), or of the carriers
        self._real: list[int] = []  # cells of [real_from, n_tokens) in the sparse phase
        self._memory: object = None
        self._recurrent = False

    def bind(self, memory: object, recurrent: bool) -> None:
        """Attach to a llama_memory; a `recurrent` one cannot move a position."""
        self._memory, self._recurrent = memory, recurrent

    @property
    def real_from(self) -> int:
        """First position that has a cell of its own, in the sparse phase."""
        return self.n_tokens - len(self._real)

    @property
    def n_real(self) -> int:
        """Latest tokens with cells of their own, in the sparse phase."""
        return len(self._real)

    @property
    def carriers(self) -> np.ndarray:
        """Cells of the first C positions, or of all in the dense phase; int32, a view."""
        return self._of[: self.n_carriers or self.n_tokens]

    @property
    def in_use(self) -> np.ndarray:
        """Cells of all positions that have one, in their order; int32 [C + n_real]."""
        return np.concatenate([self.carriers, np.array(self._real, np.int32)])

    def append(self, cells: Sequence[int]) -> None:
        """Take note of the cells of new tokens."""
        if self.n_carriers:
            self._real += cells
            self.moved = None
        else:
            self._of[self.n_tokens : self.n_tokens + len(cells)] = cells
        self.n_tokens += len(cells)

    def forget(self, first: int, last: int = -1) -> bool:
        """Have llama.cpp forget positions [first, last), by default all from `first` on.

        Returns
        -------
        bool
            False where it cannot.
        """
        return llama_cpp.llama_memory_seq_rm(self._memory, 0, first, last)

    def keep_real(self, n_kept: int) -> None:
        """Let only the last `n_kept` tokens keep cells of their own."""
        n_dropped = len(self._real) - n_kept
        if n_dropped > 0:
            if not self.forget(self.real_from, self.real_from + n_dropped):
                raise IceCacheError("llama.cpp refused to free cells; call reset() and start anew.")
            del self._real[:n_dropped]

    def keep_carriers(self, n_kept: int) -> None:
        """Let only the first `n_kept` carriers keep their cells, and the last token its own."""
        self.keep_real(max(1, self._n_swa))
        if not self.forget(n_kept, self.n_carriers):
            raise IceCacheError("llama.cpp refused to free cells; call reset() and start anew.")
        self.n_carriers = n_kept

    def begin_sparse(self, n_carriers: int) -> None:
        """Turn the first positions into carriers; all others have cells of their own."""
        self._real = self._of[n_carriers : self.n_tokens].tolist()
        self.n_carriers = n_carriers

    def end_sparse(self) -> None:
        """Give every carrier back to its own position; the others must be forgotten."""
        self._real, self.n_carriers, self.moved = [], 0, None

    def clear(self) -> None:
        """Forget the sequence."""
        llama_cpp.llama_memory_clear(self._memory, True)
        self.end_sparse()
        self.n_tokens = 0

    def windows_reach(self, n_tokens: int) -> bool:
        """Whether sliding windows are whole for the token that follows the first `n_tokens`."""
        if not self._n_swa:
            return True
        first = max(0, n_tokens + 1 - self._n_swa)
        if self.n_carriers and first < self.real_from and self.n_carriers < n_tokens:
            if self.n_carriers < self.real_from:
                return False  # what was in between has no cells
        return llama_cpp.llama_memory_seq_pos_min(self._memory, 0) <= first

    def cut(self, n_tokens: int) -> bool:
        """Free the cells of positions >= `n_tokens` > C; `n_tokens` itself is left to the caller.

        The position before then has a cell of its own, perhaps a `moved` one.

        Returns
        -------
        bool
            False where llama.cpp cannot.
        """
        if n_tokens > self.real_from:
            if not self.forget(n_tokens):
                return False
            del self._real[n_tokens - self.real_from :]
            return True
        # The token's own cell is gone: the last one gets its position. llama.cpp will rotate what
        # the cells hold (and scale it, where RoPE has a factor): all are rewritten before use.
        if self._recurrent or not llama_cpp.llama_memory_can_shift(self._memory):
            return False
        self.keep_real(1)
        self.shift_last(n_tokens)
        return True

    def shift_last(self, n_tokens: int) -> None:
        """Let the only token with a cell of its own take the last of `n_tokens` positions."""
        last = self.n_tokens - 1
        llama_cpp.llama_memory_seq_add(self._memory, 0, last, last + 1, n_tokens - 1 - last)
        self.moved = self._real[0]

    def adopt(self, n_tokens: int, cells: np.ndarray, n_real: int) -> None:
        """Describe a sequence that llama.cpp holds already, as it was in another context.

        Parameters
        ----------
        n_tokens : int
        cells : int32 array [C + n_real]
            Cells of the first C positions and of the latest `n_real`.
        n_real : int
            0 for the dense phase.
        """
        n_held = len(cells) - n_real
        self._of[:n_held] = cells[:n_held]
        self._real = cells[n_held:].tolist()
        self.n_carriers = n_held if n_real else 0
        self.n_tokens = n_tokens

    def ranks(self) -> np.ndarray:
        """Rank of each cell of `in_use` among them; int32 [C + n_real]."""
        return ranks(self.in_use)


def ranks(cells: np.ndarray) -> np.ndarray:
    """Rank of each of some distinct cells; int32 [n]."""
    return np.argsort(np.argsort(cells)).astype(np.int32)
