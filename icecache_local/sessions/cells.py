"""Telling llama.cpp which positions its cells hold, without computing them.

Its sequence state (`llama_state_seq_get_data`) is a list of positions, then the rows of every
layer's K, then of V. Rows of zeros will do here: cells are written from the host tier.
"""

from __future__ import annotations

import ctypes
import struct

import llama_cpp
import numpy as np

from ..device.base import Device
from ..errors import SessionError, UnsupportedModelError
from ..graph_check import F16

_EMPTY = struct.Struct("<IiII")  # magic, sequence, streams, cells: the state of an empty cache
_CELL = np.dtype([("position", "<i4"), ("n_sequences", "<u4"), ("sequence", "<i4")])
_ROWS = struct.Struct("<iQ")  # type and bytes of a row


def check_supported(ctx: object, devices: dict[int, Device], n_cells: int) -> None:
    """Refuse models of which llama.cpp keeps more than one K and V row per cell and layer.

    Parameters
    ----------
    ctx : llama_context
        Its cache holds `n_cells` cells.
    devices : dict of int to Device
        By layer number.
    n_cells : int

    Raises
    ------
    UnsupportedModelError
        A sliding window, a recurrent state, or positions of several dimensions.
    """
    rows = sum(_ROWS.size + n_cells * row for row in _row_sizes(devices))
    expected = _EMPTY.size + n_cells * _CELL.itemsize + 8 + rows
    if llama_cpp.llama_state_seq_get_size(ctx, 0) != expected:
        raise UnsupportedModelError(
            "Sessions hold the K and V of layers that attend to everything; this model keeps "
            "more (a sliding window, a recurrent state or positions of several dimensions): "
            "use save_state, which lasts as long as the process."
        )


def place_cells(ctx: object, devices: dict[int, Device], position_of: np.ndarray) -> None:
    """Make an empty cache hold `position_of[i]` in cell i, with rows of zeros.

    Parameters
    ----------
    ctx : llama_context
    devices : dict of int to Device
        By layer number, ascending.
    position_of : int32 array [n]

    Raises
    ------
    SessionError
        llama.cpp does not take it.
    """
    empty = (ctypes.c_uint8 * _EMPTY.size)()
    n_bytes = llama_cpp.llama_state_seq_get_data(ctx, empty, _EMPTY.size, 0)
    cells = np.zeros(len(position_of), _CELL)
    cells["position"], cells["n_sequences"] = position_of, 1
    rows = _row_sizes(devices)
    parts = [
        bytes(empty)[: _EMPTY.size - 4],
        struct.pack("<I", len(cells)),
        cells.tobytes(),
        struct.pack("<II", 0, len(devices)),
        *(_ROWS.pack(F16, row) + bytes(len(cells) * row) for row in rows),
    ]
    state = b"".join(parts)
    buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    taken = llama_cpp.llama_state_seq_set_data(ctx, buffer, len(state), 0)
    if n_bytes != _EMPTY.size or taken != len(state):
        raise SessionError("llama.cpp refused the session's cells; read the text again.")


def _row_sizes(devices: dict[int, Device]) -> list[int]:
    """Bytes of a row of each K, then of each V that is not a part of K."""
    sizes = [device.row_bytes for device in devices.values()]
    return [k for k, _ in sizes] + [v for _, v in sizes if v]
