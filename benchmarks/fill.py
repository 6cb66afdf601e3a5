"""Fill a KV cache with random keys and values, to time decoding without reading a prompt."""

from __future__ import annotations

import ctypes
import struct

import llama_cpp
import numpy as np

from icecache_local import IceLlama

KEY_STD = 1.6  # of one component: what a QK-norm model with scores of std 2.5 has
BLOCK = 4096  # tokens of random content, repeated
F16 = 1  # GGML_TYPE_F16


def random_rows(n_tokens: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random f16 rows [n_tokens, *shape]."""
    block = (KEY_STD * rng.standard_normal((BLOCK, *shape), np.float32)).astype(np.float16)
    return np.resize(block, (n_tokens, *shape))


def fill_stock(
    llm: llama_cpp.Llama, n_tokens: int, n_layers: int, row: int, rng: np.random.Generator
) -> None:
    """Give a stock context `n_tokens` cached tokens through llama.cpp's sequence state.

    Parameters
    ----------
    llm : llama_cpp.Llama
        A context that has seen nothing yet.
    n_tokens : int
    n_layers : int
    row : int
        KV heads times head dim.
    rng : numpy.random.Generator

    Raises
    ------
    RuntimeError
        llama.cpp's state has another layout than expected, or it did not take all tokens.
    """
    transposed = llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    llm.eval([0])
    size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
    own = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(llm.ctx, own, size, 0)
    header = bytes(own[:8])  # magic number and sequence
    if len(_state(header, 1, n_layers, row, transposed, rng)) != size:
        raise RuntimeError("llama.cpp's sequence state has an unknown layout.")
    state = _state(header, n_tokens, n_layers, row, transposed, rng)
    taken = llama_cpp.llama_state_seq_set_data(
        llm.ctx, (ctypes.c_uint8 * len(state)).from_buffer(state), len(state), 0
    )
    memory = llama_cpp.llama_get_memory(llm.ctx)
    first = llama_cpp.llama_memory_seq_pos_min(memory, 0)
    last = llama_cpp.llama_memory_seq_pos_max(memory, 0)
    if taken != len(state) or (first, last) != (0, n_tokens - 1):
        raise RuntimeError(f"llama.cpp holds positions {first} to {last}, not {n_tokens} tokens.")
    llm.n_tokens = n_tokens


def _state(
    header: bytes, n: int, n_layers: int, row: int, transposed: bool, rng: np.random.Generator
) -> bytearray:
    """Compose a sequence state of one stream: cells, K of all layers, V of all layers."""
    cells = np.zeros((n, 3), np.int32)  # position, number of sequences, sequence
    cells[:, 0] = np.arange(n)
    cells[:, 1] = 1
    state = bytearray(header + struct.pack("<II", 1, n))
    state += cells.tobytes() + struct.pack("<II", transposed, n_layers)
    for _ in range(n_layers):
        state += struct.pack("<iQ", F16, 2 * row) + random_rows(n, (row,), rng).tobytes()
    # A transposed V (flash attention off) is written by component instead of by token.
    v_type = struct.pack("<iII", F16, 2, row) if transposed else struct.pack("<iQ", F16, 2 * row)
    for _ in range(n_layers):
        state += v_type
        state += random_rows(n, (row,), rng).tobytes()
    return state


def fill_ice(llm: IceLlama, n_tokens: int, rng: np.random.Generator) -> None:
    """Give an IceLlama `n_tokens` cached tokens: a real prompt's first ones, then random rows.

    The rows enter the host tier and the index as those of a prompt do. llama.cpp itself keeps
    one token beside the carriers; it is moved to the last position.
    """
    kv = llm._kv
    llm.eval(rng.integers(0, llm.n_vocab(), kv.n_cells + 1).tolist())
    kv.cells.keep_real(1)
    for cache in kv.layers.values():
        shape = cache.shape
        k = random_rows(BLOCK, (shape.n_kv_heads, shape.head_dim_k), rng).view(np.uint16)
        v = random_rows(BLOCK, (shape.n_kv_heads, shape.head_dim_v), rng).view(np.uint16)
        while cache.n_tokens < n_tokens:
            first = cache.n_tokens % BLOCK
            n_new = min(kv.n_batch, BLOCK - first, n_tokens - cache.n_tokens)
            cache.append_rows(k, v, np.arange(first, first + n_new))
    kv.cells.shift_last(n_tokens)
    kv.cells.n_tokens = llm.n_tokens = n_tokens
