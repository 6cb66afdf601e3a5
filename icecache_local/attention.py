"""Attention: exact attention of a ubatch over the host tier, on the CPU."""

from __future__ import annotations

import numpy as np

from ._native import ffi, lib
from .config import PAGE
from .errors import UnsupportedModelError
from .host_pages import HostPages

_F16_BYTES = 2


class Attention:
    """Overwrites llama.cpp's attention output with exact attention over all tokens.

    Earlier tokens are read from the host tier, in any order and without a mask; the ubatch's
    own tokens from llama.cpp's cells, causally. Sums are kept in float32 with the online softmax
    of FlashAttention (arXiv 2205.14135), so that no score leaves the processor's cache.

    Parameters
    ----------
    n_threads : int
        OpenMP threads; llama.cpp's own pool is shared where it uses the same OpenMP library.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._scratch = np.empty(0, np.uint8)
        self._args = ffi.new("ice_attention_args *")

    def run(
        self,
        layer: ffi.CData,
        pages: HostPages,
        cells: np.ndarray,
        fill: np.ndarray | None = None,
    ) -> None:
        """Write the attention of one layer's new tokens to `layer.out`.

        Parameters
        ----------
        layer : ice_layer
            What the hook found: addresses and strides of queries (float32 [T, H, Dk]), output
            (float32 [T, H, Dv]) and cells (f16 [C, G, Dk] and [C, G, Dv]), all in host memory;
            scale, softcap and attention sinks. ALiBi (`max_bias`) is not applied.
        pages : HostPages
            The earlier tokens; the new ones must not be among them.
        cells : int64 array [T]
            Cells of the new tokens in position order.
        fill : int32 array [G, P], optional
            As `HostPages.fill`, but 0 for pages that are left out.

        Raises
        ------
        UnsupportedModelError
            A head dimension that the kernel does not do.
        ValueError
            `cells` does not hold one int64 cell per query.
        """
        if cells.shape != (layer.n_tokens,) or cells.dtype != np.int64:
            raise ValueError(
                f"cells must be int64 [{layer.n_tokens}], one per query, "
                f"not {cells.dtype} {list(cells.shape)}."
            )
        args = self._args
        for name in (
            *("q", "q_token", "q_head", "out", "out_token", "out_head", "sinks"),
            *("n_tokens", "n_heads", "n_kv_heads", "dk", "dv", "scale", "softcap"),
        ):
            setattr(args, name, getattr(layer, name))
        args.k_cells = ffi.cast("uint16_t *", layer.k_cells)
        args.v_cells = ffi.cast("uint16_t *", layer.v_cells)
        for name in ("k_cell", "v_cell", "k_head", "v_head"):
            setattr(args, name, getattr(layer, name) // _F16_BYTES)
        cells = np.ascontiguousarray(cells)
        args.cells = _address("int64_t *", cells)
        args.pages = _address("uint16_t *", pages.kv)
        args.page_head, args.page = (stride // _F16_BYTES for stride in pages.kv.strides[:2])
        if layer.v_in_k:
            offset = ffi.cast("char *", layer.v_cells) - ffi.cast("char *", layer.k_cells)
            args.page_v, args.page_v_row = offset // _F16_BYTES, layer.dk
        else:
            args.page_v, args.page_v_row = PAGE * layer.dk, layer.dv
        fill = pages.fill if fill is None else np.ascontiguousarray(fill, np.int32)
        args.fill = _address("int32_t *", fill)
        args.fill_head = fill.strides[0] // fill.itemsize
        args.n_pages = _address("int32_t *", pages.n_pages)
        args.n_threads = self.n_threads
        self._reserve(layer.dk, layer.dv)
        if lib.ice_attention(args) != 0:
            raise UnsupportedModelError(
                f"{layer.n_heads} query heads cannot share {layer.n_kv_heads} KV heads; "
                f"use llama_cpp.Llama for this model."
            )

    def _reserve(self, dk: int, dv: int) -> None:
        """Make the scratch large enough; the first layer of each shape pays."""
        size = lib.ice_attention_scratch(self.n_threads, dk, dv)
        if size < 0:
            raise UnsupportedModelError(
                f"Head dimensions must be multiples of 8 and at most 576, not {dk} and {dv}; "
                f"use llama_cpp.Llama for this model."
            )
        if size > self._scratch.size:
            self._scratch = np.empty(size, np.uint8)
        self._args.scratch = _address("void *", self._scratch)
        self._args.scratch_bytes = self._scratch.size


def _address(ctype: str, array: np.ndarray) -> ffi.CData:
    return ffi.cast(ctype, array.ctypes.data)
