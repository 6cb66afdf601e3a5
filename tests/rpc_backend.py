"""llama.cpp's RPC backend: cells in the memory of another process, which no pointer reaches."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_cpp import llama_cpp

LIBRARY = "ICECACHE_RPC_LIBRARY"  # path of libggml-rpc where llama.cpp was built without it


def library() -> Path | None:
    """The backend's library, if there is one; tools/build_rpc.py makes it."""
    own = llama_cpp._base_path / "libggml-rpc.so"
    path = Path(os.environ.get(LIBRARY, own))
    return path if path.exists() else None


def _function(lib: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> object:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def serve(endpoint: str) -> None:
    """Lend this process's CPU and memory to others; never returns."""
    cpu = _function(llama_cpp._lib, "ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)(0)
    devices = (ctypes.c_void_p * 1)(cpu)
    start = _function(
        ctypes.CDLL(str(library())),
        "ggml_backend_rpc_start_server",
        None,
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p),
    )
    start(endpoint.encode(), None, 1, 1, devices)


def register(endpoint: str) -> None:
    """Make a server a device of this process; models may then be loaded onto it."""
    llama_cpp.llama_backend_init()
    add = _function(
        ctypes.CDLL(str(library())),
        "ggml_backend_rpc_add_server",
        ctypes.c_void_p,
        ctypes.c_char_p,
    )
    take = _function(llama_cpp._lib, "ggml_backend_register", None, ctypes.c_void_p)
    take(add(endpoint.encode()))


@contextmanager
def server() -> Iterator[str]:
    """A server on this machine as long as the `with` block runs; its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, endpoint]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _wait_for(endpoint, process)
            yield endpoint
        finally:
            process.kill()


def _wait_for(endpoint: str, process: subprocess.Popen) -> None:
    host, port = endpoint.split(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read().decode()) from None


if __name__ == "__main__":
    serve(sys.argv[1])
