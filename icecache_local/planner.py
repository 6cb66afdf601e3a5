"""What a model and a context length will take, before anything is loaded."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from .config import CELL_ALIGN, PAGE, CacheConfig
from .errors import ConfigError, DiskTierError, HostMemoryError
from .gguf_info import ModelInfo
from .host_pages import HUGE_FROM
from .memory import HUGE_PAGE
from .record_io import spill_folder
from .reuse import leaders

N_UBATCH = 512  # tokens per step of reading
# Measured at 4k to 33k tokens, head dims 64 to 256: pages are not quite full, some wait to be
# indexed, and a key costs the index a fixed part and one that grows with its dims. Of the latter,
# 0.04 are spare room that huge pages commit along with what is used.
HOST_OVERHEAD = 1.045
HOST_SPARE_TOKENS = 832
INDEX_BYTES_PER_KEY = 10.8
INDEX_BYTES_PER_DIM = 0.276
PROGRAM_BYTES = 300 << 20  # interpreter, libraries, compiled kernels, scratch


@dataclass(frozen=True)
class Plan:
    """Bytes that one context takes; every field but `n_ctx` and `max_n_ctx` is in bytes.

    Attributes
    ----------
    n_ctx : int
        Planned context in tokens.
    weights : int
        Tensors of the model file.
    cells : int
        llama.cpp's own cache: the resident cells, and the sliding-window layers' cache.
    host : int
        K and V of all `n_ctx` tokens in the host tier, or as much of them as `ram_limit` allows.
    disk : int
        Most bytes of the spill file.
    index : int
        The index over all keys.
    compute : int
        llama.cpp's compute buffer, see `compute_buffer_bytes`.
    program : int
        The program itself.
    full_kv : int
        The cache llama.cpp would hold without icecache-local, f16.
    available : int
        Memory free on this machine.
    disk_available : int
        Room where the spill file would lie.
    max_n_ctx : int
        Largest context that fits, in tokens, a multiple of 256; 0 if none does.
    notes : tuple of str
        What the estimate leaves out for this model, one sentence each.
    """

    n_ctx: int
    weights: int
    cells: int
    host: int
    disk: int
    index: int
    compute: int
    program: int
    full_kv: int
    available: int
    disk_available: int
    max_n_ctx: int
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of everything but the full KV, which is the alternative."""
        return self.fixed + self.host + self.index

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the context."""
        return self.weights + self.cells + self.compute + self.program

    @property
    def fits(self) -> bool:
        """Whether the planned context fits into the available memory and disk."""
        return self.total <= self.available and self.disk <= self.disk_available


def make_plan(
    info: ModelInfo,
    config: CacheConfig,
    n_ctx: int,
    available: int | None = None,
    n_gpu_layers: int = 0,
) -> Plan:
    """Estimate what a model, a cache configuration and a context take in memory.

    Parameters
    ----------
    info : ModelInfo
        From `read_model_info`.
    config : CacheConfig
    n_ctx : int
        Tokens the user may fill.
    available : int, optional
        Bytes of free memory; by default this machine's.
    n_gpu_layers : int
        Layers on GPUs, counted as by `plan_vram`: their weights and cells take no memory here.

    Returns
    -------
    Plan
    """
    if available is None:
        available = available_bytes()
    n_cells = config.n_cells(N_UBATCH, info.n_swa)
    n_sliding = min(n_ctx, info.n_swa + N_UBATCH)
    kv_heads = [info.kv_heads[i] for i in info.cached_layers]
    heads, who = sum(kv_heads), leaders(kv_heads, config.reuse_layers)
    followers = sum(n for n, leader in zip(kv_heads, who, strict=True) if leader is not None)
    # Whole bytes per token, so that what fits can be computed backwards exactly.
    index_token = math.ceil(heads * (INDEX_BYTES_PER_KEY + INDEX_BYTES_PER_DIM * info.head_dim_k))
    index_token += 4 * followers  # where each token is
    host_token = math.ceil(info.token_bytes * HOST_OVERHEAD)
    spare = HOST_SPARE_TOKENS * info.token_bytes
    huge = heads * HUGE_PAGE // 2  # on average, half of the last one is not used
    huge_from = 2 * heads * HUGE_FROM // info.token_bytes if info.token_bytes else n_ctx + 1
    away = info.blocks_on_gpu(n_gpu_layers)
    fixed = {
        "weights": info.weight_bytes - sum(info.block_bytes[i] for i in away),
        "cells": n_cells
        * (info.token_bytes + info.sliding_token_bytes - sum(map(info.cell_bytes, away))),
        "compute": compute_buffer_bytes(info, n_cells),
        "program": PROGRAM_BYTES,
    }
    room, token = available - sum(fixed.values()) - spare, host_token + index_token
    most = room // token
    if most >= huge_from:
        most = max((room - huge) // token, huge_from - 1)
    pages = n_ctx * host_token + spare
    host, disk_available = pages + (huge if n_ctx >= huge_from else 0), 0
    if config.ram_limit is not None:
        host = min(pages, config.ram_limit)
        disk_available = shutil.disk_usage(spill_folder()).free
        # The index stays in memory, everything may be on the disk, and reading needs one layer.
        layer_token = 2 * max(info.kv_heads) * (info.head_dim_k + info.head_dim_v)
        most = min(
            (available - sum(fixed.values()) - config.ram_limit) // index_token,
            (disk_available - spare) // host_token,
            int((config.ram_limit - spare) / (HOST_OVERHEAD * layer_token)) - HOST_SPARE_TOKENS,
        )
    return Plan(
        n_ctx=n_ctx,
        host=host,
        disk=pages if host < pages else 0,
        disk_available=disk_available,
        index=n_ctx * index_token,
        full_kv=n_ctx * info.token_bytes + n_sliding * info.sliding_token_bytes,
        available=available,
        max_n_ctx=max(0, most // CELL_ALIGN * CELL_ALIGN),
        notes=_notes(info, n_ctx),
        **fixed,
    )


def check_fits(
    info: ModelInfo,
    config: CacheConfig,
    n_ctx: int,
    available: int | None = None,
    n_gpu_layers: int = 0,
) -> None:
    """Refuse a context that does not fit into this machine's memory.

    Parameters
    ----------
    info, config, n_ctx, available, n_gpu_layers
        As for `make_plan`.

    Raises
    ------
    HostMemoryError, DiskTierError
        With the sizes and the largest `n_ctx` that would fit.
    ConfigError
        `ram_limit` is too small for one layer.
    """
    plan = make_plan(info, config, n_ctx, available, n_gpu_layers)
    if config.ram_limit is not None and plan.disk:
        _check_ram_limit(info, config, n_ctx)
    if plan.fits:
        return
    if plan.total <= plan.available:
        raise DiskTierError(
            f"n_ctx {n_ctx} of {info.name} takes {format_bytes(plan.disk)} in {spill_folder()}, "
            f"but {format_bytes(plan.disk_available)} are free there: lower n_ctx to "
            f"{plan.max_n_ctx} or less, or set TMPDIR to a folder with more room."
        )
    if plan.max_n_ctx:
        advice = f"lower n_ctx to {plan.max_n_ctx} or less"
    else:
        advice = "close other programs or pass a smaller model"
    raise HostMemoryError(
        f"n_ctx {n_ctx} of {info.name} takes {format_bytes(plan.total)} of memory, but "
        f"{format_bytes(plan.available)} are free: {advice}."
    )


def _check_ram_limit(info: ModelInfo, config: CacheConfig, n_ctx: int) -> None:
    """Refuse a `ram_limit` below one layer's pages: reading attends to a whole layer at once."""
    layer = 2 * max(info.kv_heads) * (info.head_dim_k + info.head_dim_v)
    pinned = config.sink + config.window + N_UBATCH + 3 * PAGE  # tokens that never leave
    least = math.ceil((n_ctx * HOST_OVERHEAD + HOST_SPARE_TOKENS) * layer)
    least += pinned * (info.token_bytes - layer)
    if config.ram_limit < least:
        raise ConfigError(
            f"ram_limit is {format_bytes(config.ram_limit)}, but reading holds one layer at a "
            f"time, {format_bytes(least)} at n_ctx {n_ctx}: raise ram_limit or lower n_ctx."
        )


def largest_n_ctx(
    info: ModelInfo, config: CacheConfig, available: int | None = None, n_gpu_layers: int = 0
) -> int:
    """Largest context that fits into this machine's memory, in tokens.

    Parameters
    ----------
    info, config, available, n_gpu_layers
        As for `make_plan`.

    Returns
    -------
    int
        A multiple of 256, and at least 256: where nothing fits, `check_fits` says so.
    """
    return max(CELL_ALIGN, make_plan(info, config, CELL_ALIGN, available, n_gpu_layers).max_n_ctx)


def compute_buffer_bytes(info: ModelInfo, n_cells: int) -> int:
    """Estimate the compute buffer llama.cpp allocates to read `N_UBATCH` tokens at a time.

    The larger of two moments counts: the logits of a ubatch, or the feed-forward
    activations (of mixture models also the outputs of all experts used), each with some
    hidden states, in f32, beside the f16 mask.

    Against the "compute buffer size" that llama-cpp-python 0.3.36 logs with flash attention
    and 1,024 cells on the CPU, for seven shapes (llama, qwen2, qwen3, qwen3moe; width 256 to
    4,096, vocabulary 4,096 to 151,936): exact for three, and within -7% and +12% for all.

    Parameters
    ----------
    info : ModelInfo
    n_cells : int
        Cells of llama.cpp's own cache.

    Returns
    -------
    int
        Bytes.
    """
    logits = info.n_vocab + 6 * info.n_embd
    feed_forward = 2 * info.n_ff + (8 + info.n_experts_used) * info.n_embd
    return N_UBATCH * (4 * max(logits, feed_forward) + 2 * n_cells)


def available_bytes() -> int:
    """Memory this process may still use: free in the machine and in its container, in bytes."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    # Cached files count as used, but are dropped when memory is wanted.
    return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))


def format_bytes(n: int) -> str:
    """Write a number of bytes with three digits and a binary unit, 1.21 GiB."""
    value, units = float(n), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    digits = 0 if units[0] == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[0]}"


def _notes(info: ModelInfo, n_ctx: int) -> tuple[str, ...]:
    """Sentences on what the estimate assumes or leaves out."""
    notes = []
    cached, sliding = len(info.cached_layers), sum(map(bool, info.sliding))
    if sliding:
        notes.append(
            f"{sliding} of {info.n_layers} layers look back {info.n_swa:,} tokens only; "
            "llama.cpp keeps their cache, counted under cells."
        )
    if info.is_recurrent:
        notes.append(
            f"Only {cached} of {info.n_layers} layers hold a cache that grows; "
            "the state of the recurrent ones is small and not counted."
        )
    if info.is_mla:
        notes.append("The compressed cache (MLA) of this model is counted as llama.cpp holds it.")
    if info.n_ctx_train and n_ctx > info.n_ctx_train:
        notes.append(
            f"The model was trained for {info.n_ctx_train:,} tokens; "
            "beyond them its answers may get worse."
        )
    return tuple(notes)
