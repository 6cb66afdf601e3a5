"""What a model takes in the memory of GPUs, before it is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .config import CacheConfig
from .errors import DeviceError, IceCacheError
from .gguf_info import ModelInfo
from .planner import N_UBATCH, compute_buffer_bytes, format_bytes

if TYPE_CHECKING:
    from .ggml import GpuMemory

NO_GPU = ("base", "cpu", "blas")  # llama.cpp's backends that use none


@dataclass(frozen=True)
class VramPlan:
    """Bytes that the layers on GPUs take there; every field but the first two is in bytes.

    What the driver and its libraries take for themselves is not counted.

    Attributes
    ----------
    n_gpu_layers : int
        Layers on GPUs as llama.cpp counts them: the output is one more than the blocks.
    devices : tuple of str
        The GPUs; empty if there is none.
    weights : int
        Their tensors.
    cells : int
        Resident cells, and the cache of layers with a sliding window.
    staging : int
        Most of the buffers through which the host tier streams.
    compute : int
        llama.cpp's compute buffer, see `compute_buffer_bytes`.
    free : int
        Free now, all GPUs together.
    most_layers : int
        Largest `n_gpu_layers` that fits.
    """

    n_gpu_layers: int
    devices: tuple[str, ...]
    weights: int
    cells: int
    staging: int
    compute: int
    free: int
    most_layers: int

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.weights + self.cells + self.staging + self.compute

    @property
    def fits(self) -> bool:
        """Whether that is free now."""
        return self.total <= self.free


def gpus() -> list[GpuMemory]:
    """GPUs that llama.cpp sees; it is not loaded where it was built without a backend for any."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return []
    backends = (Path(spec.origin).parent / "lib").glob("*ggml-*")
    names = {path.name.partition("ggml-")[2].partition(".")[0] for path in backends}
    # A program may have registered one that is not among these.
    if "llama_cpp" not in sys.modules and all(name.startswith(NO_GPU) for name in names):
        return []
    from . import ggml

    return ggml.gpus()


def plan_vram(info: ModelInfo, config: CacheConfig, n_gpu_layers: int) -> VramPlan:
    """Estimate what a model takes on the GPUs that llama.cpp sees.

    Parameters
    ----------
    info : ModelInfo
    config : CacheConfig
    n_gpu_layers : int
        As in `llama_cpp.Llama`: -1 for all; the last ones are taken, the output first.

    Returns
    -------
    VramPlan
    """
    found, most = gpus(), info.n_layers + 1
    n = most if n_gpu_layers < 0 else min(n_gpu_layers, most)
    free = sum(gpu.free for gpu in found)
    # Each GPU has buffers of its own.
    sizes = [_sizes(info, config, count, max(1, len(found))) for count in range(most + 1)]
    weights, cells, staging, compute = sizes[n]
    return VramPlan(
        n_gpu_layers=n,
        devices=tuple(f"{gpu.name} ({gpu.description})" for gpu in found),
        weights=weights,
        cells=cells,
        staging=staging,
        compute=compute,
        free=free,
        most_layers=max(count for count in range(most + 1) if sum(sizes[count]) <= free),
    )


def offloaded(n_gpu_layers: int) -> int:
    """Return `n_gpu_layers` where llama.cpp sees a GPU, and 0 where it will ignore them."""
    return n_gpu_layers if gpus() else 0


def check_vram(info: ModelInfo, config: CacheConfig, n_gpu_layers: int) -> None:
    """Refuse layers whose weights and cells alone are more than the GPUs have free.

    Parameters
    ----------
    info, config, n_gpu_layers
        As for `plan_vram`.

    Raises
    ------
    DeviceError
        With the sizes and the largest `n_gpu_layers` that would fit.
    """
    plan = plan_vram(info, config, n_gpu_layers)
    needed = plan.weights + plan.cells
    if plan.devices and needed > plan.free:
        raise DeviceError(
            f"{plan.n_gpu_layers} layers of {info.name} take {format_bytes(needed)} of GPU "
            f"memory, but {format_bytes(plan.free)} are free: lower n_gpu_layers to "
            f"{plan.most_layers} or less."
        )


@contextmanager
def loading(info: ModelInfo, n_gpu_layers: int) -> Iterator[None]:
    """Say what to do where llama.cpp cannot load a model that goes to a GPU.

    Raises
    ------
    DeviceError
        llama.cpp tells no reason; too little memory is the usual one.
    """
    try:
        yield
    except ValueError as error:
        if n_gpu_layers == 0 or isinstance(error, IceCacheError) or not gpus():
            raise
        raise DeviceError(
            f"llama.cpp could not load {info.name} with n_gpu_layers {n_gpu_layers} ({error}): "
            f"lower n_gpu_layers or n_batch, or close other programs that use the GPU."
        ) from error


def _sizes(
    info: ModelInfo, config: CacheConfig, n_gpu_layers: int, n_gpus: int
) -> tuple[int, int, int, int]:
    """Bytes of weights, cells, staging and compute buffers."""
    if n_gpu_layers == 0:
        return 0, 0, 0, 0
    layers, n_cells = info.blocks_on_gpu(n_gpu_layers), config.n_cells(N_UBATCH, info.n_swa)
    taken = any(i in info.cached_layers for i in layers)
    return (
        sum(info.block_bytes[i] for i in (*layers, info.n_layers)),
        n_cells * sum(map(info.cell_bytes, layers)),
        config.stream_limit * n_gpus if taken else 0,
        compute_buffer_bytes(info, n_cells) * n_gpus,
    )
