"""Build llama.cpp's RPC backend for the installed llama-cpp-python.

Run `pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36`, unpack it, then
`python tools/build_rpc.py llama_cpp_python-0.3.36/vendor/llama.cpp libggml-rpc.so`. With the
environment variable ICECACHE_RPC_LIBRARY set to the result, tests/test_device_rpc.py runs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
from llama_cpp import llama_cpp


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("library", type=click.Path(dir_okay=False, path_type=Path))
def main(source: Path, library: Path) -> None:
    """Compile the backend in SOURCE (llama.cpp of the same release) to LIBRARY."""
    ggml, installed = source / "ggml", llama_cpp._base_path
    rpc = ggml / "src" / "ggml-rpc"
    command = [
        *("c++", "-O2", "-std=c++17", "-shared", "-fPIC"),
        *("-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD", "-DGGML_SHARED"),
        *(f"-I{ggml / folder}" for folder in ("include", "src")),
        *map(str, (rpc / "ggml-rpc.cpp", rpc / "transport.cpp")),
        *(f"-L{installed}", "-l:libggml-base.so.0", f"-Wl,-rpath,{installed}"),
        *("-o", str(library)),
    ]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
