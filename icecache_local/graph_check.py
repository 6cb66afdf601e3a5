"""What llama.cpp's graph shows of a model's attention, and whether it can be driven exactly."""

from __future__ import annotations

from . import ggml
from ._native import ffi, lib
from .config import ModelShape
from .errors import UnsupportedModelError
from .gguf_info import ModelInfo
from .hook import Hook

F16 = 1  # GGML_TYPE_F16


def layer_shape(layer: ffi.CData, n_layers: int) -> ModelShape:
    """Shape of one `ice_layer` as the host tier holds it: V of 0 dims where it is a part of K.

    `n_layers` is the number of layers like it.
    """
    dv = 0 if layer.v_in_k else layer.dv
    return ModelShape(n_layers, layer.n_heads, layer.n_kv_heads, layer.dk, dv)


def check_graph(info: ModelInfo, hook: Hook, n_swa: int) -> None:
    """Compare the graph of a first token with the header, and refuse what would go wrong.

    Parameters
    ----------
    info : ModelInfo
    hook : Hook
        What it met in the last decode.
    n_swa : int
        llama.cpp's own sliding window in tokens.

    Raises
    ------
    UnsupportedModelError
    """
    layers = hook.layers
    readers = [i for i in hook.readers if layers[i].layer in info.cached_layers]
    for i in (*info.cached_layers, *readers):
        _refuse(layers[i].layer, _reason(layers[i]))
    for i in readers:
        owner = layers[layers[i].layer]
        if layer_shape(owner, 1) != layer_shape(layers[i], 1):
            _refuse(owner.layer, "attention of different shapes reads its KV cells")
    if n_swa != info.n_swa:
        _refuse(0, f"llama.cpp's sliding window is {n_swa} tokens, the header's {info.n_swa}")
    sliding = [i for i, slides in enumerate(info.sliding) if slides]
    for i in range(info.n_layers):
        if layers[i].seen and i not in info.cached_layers and i not in sliding:
            _refuse(i, "the header does not tell of this layer's cache")
    for memory in {_memory(layers[i]) for i in info.cached_layers}:
        # Each backend that a model is split between has a copy of the masks.
        here = [i for i in (*info.cached_layers, *readers) if _memory(layers[i]) == memory]
        masks = {layers[i].mask for i in here}
        others = {layers[i].mask for i in sliding if layers[i].seen}
        if len(masks) != 1 or masks & others:
            _refuse(layers[here[0]].layer, "the header does not tell which layers slide")


def _refuse(layer: int, reason: str | None) -> None:
    if reason:
        raise UnsupportedModelError(
            f"Layer {layer} of this model cannot be driven exactly: {reason}. "
            f"Use llama_cpp.Llama for it."
        )


def _reason(layer: ffi.CData) -> str | None:
    """Why the sparse phase would get a layer wrong, or None."""
    reason = None
    if not layer.seen:
        reason = "llama.cpp does not run its attention as one operation over cached K and V"
    elif layer.k_type != F16 or layer.v_type != F16:
        reason = "its KV cells are not f16 (leave type_k and type_v out)"
    elif layer.max_bias != 0:
        reason = "it uses ALiBi position biases"
    elif layer.q_head != 4 * layer.dk:
        reason = "its queries have an unknown layout"
    elif layer.k_head != 2 * layer.dk or layer.v_head != 2 * (
        layer.dk if layer.v_in_k else layer.dv
    ):
        reason = "its KV cells have an unknown layout"
    elif layer.n_heads % layer.n_kv_heads or lib.ice_attention_scratch(1, layer.dk, layer.dv) < 0:
        reason = f"its heads are of {layer.dk} and {layer.dv} dims, not multiples of 8 up to 576"
    return reason


def _memory(layer: ffi.CData) -> int:
    """Kind of memory in which a layer's cells lie: ggml_backend_buffer_type_t."""
    return ggml.buffer_type(int(ffi.cast("intptr_t", layer.k_buffer)))
