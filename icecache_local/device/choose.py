"""Choice of the device of each layer, by where its cells lie."""

from __future__ import annotations

import logging
import re

from .. import ggml
from .._native import ffi
from ..attention import Attention
from ..config import CacheConfig
from ..errors import ConfigError, DeviceError, MissingExtraError
from .base import Device
from .cuda import CudaDevice, Transfers
from .cupy_gpu import CupyGpu
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
    MissingExtraError, DeviceError
        "cuda" is asked for, and cupy is missing or finds no driver.
    """
    devices: dict[int, Device] = {}
    places: dict[tuple[str, str], list[int]] = {}
    gpus: dict[str, Transfers | None] = {}  # by llama.cpp's name
    for number, layer in layers.items():
        memory, device = _memory(layer), None
        if _is_cuda(layer) and config.device in ("auto", "cuda"):
            if memory not in gpus:
                gpus[memory] = _open_gpu(layer, config)
            if gpus[memory] is not None:
                device = CudaDevice(layer, gpus[memory])
        if device is None:
            device = _any_backend(layer, config.device, attention)
        devices[number] = device
        places.setdefault((type(device).__name__, memory), []).append(number)
    for (kind, memory), numbers in places.items():
        logger.info("%d layers have their cells in %s: %s", len(numbers), memory, kind)
    return devices


def _open_gpu(layer: ffi.CData, config: CacheConfig) -> Transfers | None:
    """Open the GPU that holds a layer; None where cupy cannot and may be left out."""
    try:
        gpu = CupyGpu(int(ffi.cast("intptr_t", layer.k_cells)))
    except (MissingExtraError, DeviceError) as error:
        if config.device == "cuda":
            raise
        logger.warning("%s Until then the slower way is taken: device ggml.", error)
        return None
    return Transfers(gpu, config.stream_limit)


def _any_backend(layer: ffi.CData, wanted: str, attention: Attention) -> Device:
    """Open the cells of a layer in place, or through llama.cpp's backends."""
    on_host = all(ggml.buffer_is_host(_number(buffer)) for buffer in _buffers(layer))
    fitting = {"auto", "ggml", "host"} if on_host else {"auto", "ggml"}
    if wanted not in fitting:
        raise ConfigError(
            f'device is "{wanted}", but the cells of layer {layer.layer} lie in {_memory(layer)}: '
            f"leave device out."
        )
    kind = HostDevice if on_host and wanted != "ggml" else GgmlDevice
    return kind(layer, attention)


def _is_cuda(layer: ffi.CData) -> bool:
    """Whether cells, queries and output are in the memory of one NVIDIA GPU."""
    names = {ggml.buffer_name(_number(buffer)) for buffer in _buffers(layer)}
    return len(names) == 1 and re.fullmatch(rb"CUDA\d+", names.pop()) is not None


def _buffers(layer: ffi.CData) -> tuple[ffi.CData, ...]:
    return layer.k_buffer, layer.v_buffer, layer.q_buffer, layer.out_buffer


def _memory(layer: ffi.CData) -> str:
    """Name of the memory in which a layer's cells lie, as llama.cpp calls it."""
    return ggml.buffer_name(_number(layer.k_buffer)).decode()


def _number(buffer: ffi.CData) -> int:
    return int(ffi.cast("intptr_t", buffer))
