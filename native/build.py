"""cffi build of icecache_local._native: hook, CPU attention kernel, reads; no Python.h in C."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADERS = ("ice_hook.h", "ice_attention.h", "ice_read.h")
SOURCES = ("ice_hook.c", "ice_attention.c", "ice_read.c")


def llama_cpp_include() -> Path:
    """Directory of the headers that the llama-cpp-python wheel installs."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise SystemExit("llama-cpp-python must be installed before icecache-local is built.")
    include = Path(spec.origin).resolve().parent.parent / "include"
    if not (include / "llama.h").exists():
        raise SystemExit(f"llama-cpp-python's headers are missing from {include}.")
    return include


def declarations(header: Path) -> str:
    """Strip `header` of preprocessor lines, as cffi's cdef reads them."""
    return re.sub(r"^\s*#.*$", "", header.read_text(), flags=re.MULTILINE)


def supported(flags: list[str]) -> list[str]:
    """Those of `flags` that this machine's C compiler accepts."""
    compiler = "cl" if sys.platform == "win32" else "cc"
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("int main(void) { return 0; }\n")
        for flag in flags:
            command = [compiler, "-Werror", flag, str(source), "-o", str(Path(folder, "empty"))]
            try:
                done = subprocess.run(command, capture_output=True, check=False)
            except OSError:
                return []
            if done.returncode == 0:
                accepted.append(flag)
    return accepted


def make_ffi() -> FFI:
    """Builder of the extension module, found by setup.py through `cffi_modules`."""
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef(declarations(HERE / header))
    ffi.cdef('extern "Python" int ice_on_layer(void *listener, int32_t layer);')
    ffi.cdef("const char *ice_built_against(void);")
    # llama.cpp itself is compiled for the machine it runs on; so is the attention kernel.
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags = supported(["-std=c11", "-O3", native, "-fopenmp"])
    built_against = version("llama-cpp-python")
    ffi.set_source(
        "icecache_local._native",
        "".join(f'#include "{header}"\n' for header in HEADERS)
        + f'static const char *ice_built_against(void) {{ return "{built_against}"; }}\n',
        sources=[f"native/{name}" for name in SOURCES],
        include_dirs=["native", str(llama_cpp_include())],
        extra_compile_args=flags,
        extra_link_args=[flag for flag in flags if flag == "-fopenmp"],
    )
    return ffi


ffibuilder = make_ffi()

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
