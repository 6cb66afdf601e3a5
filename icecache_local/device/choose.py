"""Choice of the device of each layer, by where its cells lie."""

from __future__ import annotations

import logging

from .. import ggml
from .._native import ffi
from ..attention import Attention
from ..config import CacheConfig
from ..errors import ConfigError
from .base import Device
from .ggml import GgmlDevice
from .host import HostDevice

logger = logging.getLogger(__name__)


def open_devices(
    layers: dict[int, ffi.CData], config: CacheConfig, attention: Attention
) -> dict[int, Device]:
    """Open the cells of each layer, with one line in the log for each kind of memory.

    Parameters
    ----------
    layers : dict of int to ice_layer
        The owners of cells by layer number, as the hook found them.
    config : CacheConfig
        `device` forces a kind.
    attention : Attention
        Exact attention on the CPU.

    Returns
    -------
    dict of int to Device

    Raises
    ------
    ConfigError
        The kind that is asked for cannot reach a layer's cells.
    """
    devices: dict[int, Device] = {}
    places: dict[tuple[str, str], list[int]] = {}
    for number, layer in layers.items():
        kind, memory = _kind(layer, config.device), _memory(layer)
        places.setdefault((kind, memory), []).append(number)
        devices[number] = {"host": HostDevice, "ggml": GgmlDevice}[kind](layer, attention)
    for (kind, memory), numbers in places.items():
        logger.info("%d layers have their cells in %s; device: %s", len(numbers), memory, kind)
    return devices


def _kind(layer: ffi.CData, wanted: str) -> str:
    on_host = all(
        ggml.buffer_is_host(_number(buffer))
        for buffer in (layer.k_buffer, layer.v_buffer, layer.q_buffer, layer.out_buffer)
    )
    if wanted == "auto":
        return "host" if on_host else "ggml"
    if wanted == "host" and not on_host:
        raise ConfigError(
            f'device is "host", but the cells of layer {layer.layer} lie in {_memory(layer)}: '
            f"leave device out, or pass offload_kqv=False."
        )
    return wanted


def _memory(layer: ffi.CData) -> str:
    """Name of the memory in which a layer's cells lie, as llama.cpp calls it."""
    return ggml.buffer_name(_number(layer.k_buffer)).decode()


def _number(buffer: ffi.CData) -> int:
    return int(ffi.cast("intptr_t", buffer))
