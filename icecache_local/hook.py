"""Hook: llama.cpp's eval callback, and the way of Python exceptions out of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import TracebackType

import llama_cpp

from . import ggml
from ._native import ffi, lib
from .errors import BuildMismatchError, UnsupportedModelError

WATCH, DECODE, PREFILL = lib.ICE_WATCH, lib.ICE_DECODE, lib.ICE_PREFILL


def _keep(_: type, error: BaseException, traceback: TracebackType) -> None:
    """Keep what a callback raised for `Hook.check`: nothing may unwind C, Ctrl-C neither."""
    ffi.from_handle(traceback.tb_frame.f_locals["listener"]).raised = error


# cffi's onerror also gets an interrupt that arrives before the first line of the function runs,
# which is where one that came during llama.cpp's computation does.
@ffi.def_extern(error=1, onerror=_keep)
def ice_on_layer(listener: ffi.CData, place: int) -> int:
    """Entry from C; whatever is raised stops the decode."""
    ffi.from_handle(listener).on_layer(place)
    return 0


def check_build() -> None:
    """Refuse to run where the installed llama.cpp is not the one the shim was compiled for.

    Raises
    ------
    BuildMismatchError
        Version, struct size or operation number differs.
    """
    built = ffi.new("ice_build *")
    lib.ice_build_info(built)
    built_against = ffi.string(lib.ice_built_against()).decode()
    object_header = 32  # GGML_OBJECT_SIZE: two offsets, a pointer, a type and padding
    found = {
        "llama-cpp-python version": (built_against, version("llama-cpp-python")),
        "size of ggml_tensor": (built.tensor_size, ggml.tensor_overhead() - object_header),
        "size of llama_context_params": (
            built.context_params_size,
            ctypes.sizeof(llama_cpp.llama_context_params),
        ),
        "size of llama_model_params": (
            built.model_params_size,
            ctypes.sizeof(llama_cpp.llama_model_params),
        ),
        "operation SET_ROWS": (b"SET_ROWS", ggml.op_name(built.op_set_rows)),
        "operation FLASH_ATTN_EXT": (
            b"FLASH_ATTN_EXT",
            ggml.op_name(built.op_flash_attn_ext),
        ),
        "type f16": (b"f16", ggml.type_name(built.type_f16)),
    }
    for what, (expected, actual) in found.items():
        if expected != actual:
            raise BuildMismatchError(
                f"icecache-local was built for another llama.cpp ({what}: built for {expected}, "
                f"installed {actual}); reinstall it with `pip install --force-reinstall "
                f"--no-cache-dir icecache-local`."
            )


class Hook:
    """llama.cpp's callbacks of one context.

    Parameters
    ----------
    n_layers : int
        Layers of the model; `layers[i]` describes llama.cpp's layer i. Behind them come the
        readers: attention on cells that an earlier layer wrote.
    n_batch : int
        Largest number of tokens in one ubatch.
    on_layer : callable
        Called with a place in `layers` at the moment its cells (decode) or its attention output
        (prefill) may be changed.
    """

    def __init__(self, n_layers: int, n_batch: int, on_layer: Callable[[int], None]) -> None:
        self.on_layer = on_layer
        self.raised: BaseException | None = None
        self.layers = ffi.new("ice_layer[]", 2 * n_layers)
        self._cells = ffi.new("int64_t[]", n_batch)
        self._handle = ffi.new_handle(self)
        self.c = ffi.new("ice_hook *")
        self.c.n_layers = n_layers
        self.c.layers = self.layers
        self.c.cells = self._cells
        self.c.cells_capacity = n_batch
        self.c.on_layer = lib.ice_on_layer
        self.c.listener = self._handle
        self.c.tensor_get = ffi.cast(ffi.typeof(self.c.tensor_get), ggml.address(ggml.tensor_get))

    def take(self, layers: Sequence[int]) -> None:
        """Listen to these layers alone; all others are left to llama.cpp."""
        for layer in range(self.c.n_layers):
            self.layers[layer].skip = layer not in layers

    @property
    def readers(self) -> range:
        """Places of the readers met in the last decode."""
        return range(self.c.n_layers, self.c.n_layers + self.c.n_readers)

    def install(self, params: llama_cpp.llama_context_params) -> None:
        """Set the callbacks in the parameters from which a context will be made."""
        user = int(ffi.cast("intptr_t", self.c))
        params.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(
            int(ffi.cast("intptr_t", lib.ice_eval_callback()))
        )
        params.cb_eval_user_data = user
        params.abort_callback = llama_cpp.ggml_abort_callback(
            int(ffi.cast("intptr_t", lib.ice_abort_callback()))
        )
        params.abort_callback_data = user

    def begin(self, mode: int) -> None:
        """Prepare for one llama_decode in `mode` (WATCH, DECODE or PREFILL)."""
        self.raised = None
        lib.ice_hook_begin(self.c, mode)

    def check(self) -> None:
        """Raise what a callback raised during the last llama_decode, if anything.

        Raises
        ------
        UnsupportedModelError
            The graph has attention that the hook does not understand.
        """
        if self.raised is not None:
            raised, self.raised = self.raised, None
            raise raised
        if self.c.error == lib.ICE_BAD_GRAPH:
            raise UnsupportedModelError(
                "This model's attention cannot be driven exactly; use llama_cpp.Llama for it."
            )

    @property
    def cells(self) -> list[int]:
        """Cells that the last ubatch's tokens took, in position order."""
        return ffi.unpack(self._cells, self.c.n_cells)
