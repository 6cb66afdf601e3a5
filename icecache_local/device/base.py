"""Device: one layer's cells of llama.cpp, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .._native import ffi
from ..host_pages import HostPages

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


class Device(ABC):
    """What the cache does with the cells, queries and attention output of one layer.

    All methods but `upload`, `rows` and `forget` are for the hook's callback only: queries and
    output exist no longer than llama.cpp's graph. Whatever a method writes is in the device's
    memory when it returns, and llama.cpp computes nothing in the meantime. Arrays that are
    returned hold until the next call.

    Raises
    ------
    DeviceError
        By every method: the device has failed or has no memory left. Host tier, index and page
        tables are as they were.

    Attributes
    ----------
    in_place : bool
        Kernels may write to the cells themselves, as `HostDevice.upload_arrays` has them.
    """

    in_place = False

    @property
    @abstractmethod
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of one cell's K and V, all heads; V's are 0 where V is a part of K."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of this layer's cells."""

    @abstractmethod
    def rows(self, cells: np.ndarray) -> Rows:
        """K and V of some cells.

        Parameters
        ----------
        cells : int64 array [T]

        Returns
        -------
        k, v : uint16 arrays [n, G, Dk] and [n, G, Dv]
            f16 bits; Dv is 0 where V is a part of K.
        rows : int64 array [T]
            Which of the n rows belong to `cells`.
        """

    @abstractmethod
    def upload(
        self,
        pages: HostPages,
        cells: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        n: np.ndarray,
    ) -> None:
        """Copy K and V rows from the host tier into cells.

        Parameters
        ----------
        pages : HostPages
        cells : int32 array [S]
            Cell of each slot; all of them are the cache's own, llama.cpp writes none.
        slots, places : int32 arrays [G, M]
            Destination slot and source place (page * 16 + row) of each row.
        n : int32 array [G]
            Rows to copy per KV head.
        """

    @abstractmethod
    def queries(self, layer: ffi.CData) -> np.ndarray:
        """Return the queries of the ubatch's tokens, after RoPE; float32 [T, H, Dk], any strides.

        `layer` is what the hook found of the attention that is about to run, or has run.
        """

    @abstractmethod
    def attend(
        self, layer: ffi.CData, pages: HostPages, cells: np.ndarray, fill: np.ndarray | None
    ) -> None:
        """Overwrite llama.cpp's attention output by exact attention over all tokens.

        Parameters
        ----------
        layer : ice_layer
            What the hook found of the attention that has run.
        pages : HostPages
            The earlier tokens; the new ones must not be among them.
        cells : int64 array [T]
            Cells of the new tokens in position order, seen causally.
        fill : int32 array [G, P], optional
            As `HostPages.fill`, but 0 for pages that are left out.
        """

    def newest(self, layer: ffi.CData, cells: np.ndarray) -> tuple[np.ndarray, Rows]:
        """Query of the only new token, float32 [H, Dk], and the `rows` of its cell."""
        return self.queries(layer)[0], self.rows(cells)

    def forget(self) -> None:
        """Drop what is remembered of the cells: llama.cpp may have written to all of them."""
        return None
