"""The few functions of ggml that llama-cpp-python does not wrap."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

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
_dev_count = _function("ggml_backend_dev_count", ctypes.c_size_t)
_dev_get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_dev_type = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_dev_name = _function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_text = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_dev_memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, _SIZE, _SIZE)
_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU


@dataclass(frozen=True)
class GpuMemory:
    """A GPU that llama.cpp may use: its name, what it is, and bytes free now and in all."""

    name: str
    description: str
    free: int
    total: int


def gpus() -> list[GpuMemory]:
    """GPUs of any backend, in llama.cpp's order."""
    found = []
    for i in range(_dev_count()):
        device = _dev_get(i)
        if _dev_type(device) in _GPU_TYPES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            _dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            names = (_dev_name(device).decode(), _dev_text(device).decode())
            found.append(GpuMemory(*names, free.value, total.value))
    return found
