"""What goes to GPUs: estimates, refusals and the plan's table."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama, ggml, vram
from icecache_local.cli import cli
from icecache_local.errors import DeviceError, IceCacheError
from icecache_local.gguf_info import read_model_info
from icecache_local.planner import make_plan
from icecache_local.vram import check_vram, plan_vram

GIB = 1 << 30
CONFIG = CacheConfig()


@pytest.fixture
def one_gpu(monkeypatch):
    """Let llama.cpp see a GPU with so many bytes free."""

    def seen(free: int, n: int = 1) -> None:
        found = [ggml.GpuMemory(f"CUDA{i}", "a card", free, 2 * free) for i in range(n)]
        monkeypatch.setattr(vram, "gpus", lambda: found)

    return seen


@pytest.fixture(params=["llama", "qwen3", "gemma3", "lfm2"])
def info(request, tiny_model):
    return read_model_info(tiny_model(TinySpec(request.param)))


def test_layers_are_counted_from_the_output(info, one_gpu) -> None:
    one_gpu(GIB)
    plans = [plan_vram(info, CONFIG, n) for n in range(info.n_layers + 2)]
    assert (plans[0].total, plans[1].cells) == (0, 0)
    assert plans[1].weights == info.block_bytes[-1] > 0
    for number, (fewer, more) in enumerate(zip(plans[1:], plans[2:], strict=False), 1):
        added = info.n_layers - number
        assert more.weights - fewer.weights == info.block_bytes[added]
    n_cells = CONFIG.n_cells(512, info.n_swa)
    everything = n_cells * (info.token_bytes + info.sliding_token_bytes)
    assert plans[-1].cells == plan_vram(info, CONFIG, -1).cells == everything
    assert plan_vram(info, CONFIG, 999) == plans[-1]


def test_weights_are_the_file_without_the_embedding(info) -> None:
    with_output = sum(info.block_bytes)
    assert sum(info.block_bytes[:-1]) < info.weight_bytes <= with_output + info.weight_bytes // 2


def test_what_lies_on_a_gpu_takes_no_host_memory(info) -> None:
    here, there = (make_plan(info, CONFIG, 4096, GIB, n) for n in (0, -1))
    assert here.weights - there.weights == sum(info.block_bytes[:-1])
    assert there.cells == 0 < here.cells
    assert here.host == there.host
    assert there.max_n_ctx > here.max_n_ctx


def test_the_largest_number_of_layers_fits(info, one_gpu) -> None:
    one_gpu(64 * GIB)
    most = info.n_layers + 1
    totals = [plan_vram(info, CONFIG, n).total for n in range(most + 1)]
    for n in range(most + 1):
        one_gpu(totals[n])
        assert plan_vram(info, CONFIG, n).fits
        assert totals[plan_vram(info, CONFIG, 0).most_layers] <= totals[n]
        assert plan_vram(info, CONFIG, 0).most_layers >= n or totals[n] == 0


def test_two_gpus_have_buffers_of_their_own(info, one_gpu) -> None:
    one_gpu(GIB)
    one = plan_vram(info, CONFIG, -1)
    one_gpu(GIB, n=2)
    two = plan_vram(info, CONFIG, -1)
    assert (two.free, len(two.devices)) == (2 * GIB, 2)
    assert (two.staging, two.compute) == (2 * one.staging, 2 * one.compute)
    assert (two.weights, two.cells) == (one.weights, one.cells)


def test_too_many_layers_are_refused_before_loading(tiny_model, one_gpu) -> None:
    path = tiny_model(TinySpec("llama"))
    one_gpu(1000)
    with pytest.raises(DeviceError, match="of GPU memory.*lower n_gpu_layers to 0 or less"):
        IceLlama(str(path), n_ctx=512, n_gpu_layers=-1, verbose=False)
    check_vram(read_model_info(path), CONFIG, 0)


def test_what_llama_cpp_cannot_load_is_explained(tiny_model, one_gpu) -> None:
    info = read_model_info(tiny_model(TinySpec("llama")))
    one_gpu(GIB)
    with pytest.raises(DeviceError, match="Failed to create.*lower n_gpu_layers or n_batch"):
        with vram.loading(info, 3):
            raise ValueError("Failed to create llama_context")
    for n_gpu_layers, error in ((0, ValueError("x")), (3, IceCacheError("x"))):
        with pytest.raises(type(error), match="^x$"), vram.loading(info, n_gpu_layers):
            raise error


@pytest.mark.parametrize(("free", "verdict"), [(GIB, "It fits on the GPU"), (1, "does not fit on")])
def test_plan_prints_what_the_gpu_takes(free, verdict, tiny_model, one_gpu) -> None:
    path = tiny_model(TinySpec("llama"))
    arguments = ["plan", "--model", str(path), "--n-ctx", "4096"]
    without = CliRunner().invoke(cli, arguments)
    assert ("GPU" in without.output) == bool(vram.gpus())
    one_gpu(free)
    printed = CliRunner().invoke(cli, [*arguments, "--n-gpu-layers", "2"])
    assert "On CUDA0 (a card):" in printed.output and verdict in printed.output
    data = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)["vram"]
    assert data["n_gpu_layers"] == 3
    assert data["total"] == sum(data[n] for n in ("weights", "cells", "staging", "compute"))
