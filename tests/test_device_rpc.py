"""Cells that the host cannot address: llama.cpp's RPC backend with a server on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import rpc_backend
from tiny_models import TinySpec

pytestmark = pytest.mark.skipif(
    rpc_backend.library() is None,
    reason=f"llama.cpp was built without its RPC backend; see {rpc_backend.LIBRARY} in docs/gpu.md",
)
DRIVER = Path(__file__).with_name("rpc_driver.py")
ALL = 99


@pytest.mark.parametrize(
    ("arch", "n_gpu_layers", "n_remote"),
    [
        ("llama", ALL, 2),
        ("llama", 2, 1),  # the output counts as a layer: the last block and the output
        ("gemma3", ALL, 1),
        ("gpt-oss", ALL, 1),
        ("deepseek2", ALL, 2),
        ("lfm2", ALL, 1),
    ],
)
def test_cells_in_another_process(arch, n_gpu_layers, n_remote, tiny_model) -> None:
    path = tiny_model(TinySpec(arch, dtype="f32"))
    command = [sys.executable, DRIVER, path, str(n_gpu_layers), str(n_remote)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
