"""The few functions of ggml that llama-cpp-python does not wrap."""

from __future__ import annotations

import ctypes

from llama_cpp import llama_cpp


def _function(name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    # The library of llama.cpp finds those that it was linked with; a copy that is loaded once
    # more would know nothing of the devices registered.
    function = getattr(llama_cpp._lib, name)
    function.restype = result
    function.argtypes = list(arguments)
    return function


def address(function: ctypes._NamedFuncPointer) -> int:
    """Address of one of the functions below, for C."""
    return ctypes.cast(function, ctypes.c_void_p).value


_TRANSFER = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
tensor_overhead = _function("ggml_tensor_overhead", ctypes.c_size_t)
op_name = _function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
type_name = _function("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
buffer_is_host = _function("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
buffer_name = _function("ggml_backend_buffer_name", ctypes.c_char_p, ctypes.c_void_p)
buffer_type = _function("ggml_backend_buffer_get_type", ctypes.c_void_p, ctypes.c_void_p)
tensor_get = _function("ggml_backend_tensor_get", None, *_TRANSFER)  # tensor, to, offset, bytes
tensor_set = _function("ggml_backend_tensor_set", None, *_TRANSFER)  # tensor, from, offset, bytes
