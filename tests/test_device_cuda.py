"""CudaDevice without a GPU: its kernels on the CPU, its streams run in the worst order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_exactness import (
    MAX_KLD_DECODE,
    SMALL,
    assert_same_top,
    draw,
    feed,
    greedy,
    kld,
    last_logits,
)
from tiny_models import TinySpec

import icecache_local.device
from icecache_local import CacheConfig
from icecache_local.attention import Attention
from icecache_local.device import cuda
from icecache_local.device.cuda import CudaDevice, Transfers

N_CTX, N_BATCH = 2048, 64
MAX_KLD_F16 = 1e-5  # queries and weights are rounded to f16
KERNELS = Path(icecache_local.device.__file__).with_name("kernels.cu")
ARCHITECTURES = ["sm_75", "sm_86", "sm_89", "sm_90", "sm_120"]


class MovesOnly(CudaDevice):
    """Moves rows as on a card, but attends as the host does: then every bit is the same."""

    def __init__(self, layer, transfers) -> None:
        super().__init__(layer, transfers)
        self._attention = Attention(1)

    def attend(self, layer, pages, cells, fill) -> None:
        self._attention.run(layer, pages, cells, fill)


def put_on(gpu, ice, kind: type[CudaDevice] = CudaDevice, stream_limit: int = 1 << 20) -> None:
    """Let a model's cells, which are in host memory, be those of the card."""
    kv, transfers = ice._kv, Transfers(gpu, stream_limit)
    kv.devices = {i: kind(kv.hook.layers[i], transfers) for i in kv.devices}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_compile(arch, tmp_path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    command = [nvcc, f"-arch={arch}", "-cubin", "-Werror", "all-warnings", KERNELS]
    subprocess.run([*command, "-o", tmp_path / "kernels.cubin"], check=True)


@pytest.mark.parametrize("piece_rows", [cuda.PIECE_ROWS, 37])
@pytest.mark.parametrize("arch", ["llama", "deepseek2"])
def test_rows_arrive_as_on_the_host(
    arch, piece_rows, gpu, tiny_model, open_ice, rng, monkeypatch
) -> None:
    monkeypatch.setattr(cuda, "PIECE_ROWS", piece_rows)
    path, prompt = tiny_model(TinySpec(arch, dtype="f32")), draw(rng, 600)
    logits = []
    for on_gpu in (False, True):
        ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
        if on_gpu:
            put_on(gpu, ice, MovesOnly)
        ice.eval(prompt)
        rows = [last_logits(ice), *greedy(ice, 6)[1]]
        ice._kv.check_integrity()
        state = ice.save_state()
        for cut in (430, 40):
            next(ice.generate(prompt[:cut] + prompt[:50], temp=0.0))
            rows += [last_logits(ice), *greedy(ice, 6)[1]]
            ice._kv.check_integrity()
        ice.load_state(state)
        rows += list(greedy(ice, 6)[1])
        ice._kv.check_integrity()
        logits.append(np.array(rows))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("arch", ["llama", "deepseek2", "gpt-oss", "gemma2", "gemma4"])
def test_prefill_like_on_the_host(arch, gpu, tiny_model, open_ice, rng) -> None:
    path, prompt = tiny_model(TinySpec(arch, dtype="f32")), draw(rng, 600)
    logits = []
    for on_gpu in (False, True):
        ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL, logits_all=True)
        if on_gpu:
            put_on(gpu, ice)
        ice.eval(prompt)
        logits.append(ice.scores[:600].copy())
    assert kld(*logits).max() < MAX_KLD_F16
    assert_same_top(*logits)


def test_full_budget_decodes_like_stock(gpu, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(TinySpec("qwen3", dtype="f32")), draw(rng, 300)
    stock = open_stock(path, N_CTX, N_BATCH)
    ice = open_ice(path, N_CTX, N_BATCH, cache=CacheConfig(budget=512))
    put_on(gpu, ice)
    for llm in (stock, ice):
        llm.eval(prompt)
    tokens, theirs = greedy(stock, 24)
    ice._kv.spill()
    rows = []
    for i in range(0, 24, 8):
        ice._kv.shuffle(rng)
        rows.append(feed(ice, tokens[i : i + 8]))
        ice._kv.check_integrity()
    ours = np.concatenate(rows)
    assert_same_top(theirs, ours)
    assert kld(theirs, ours).mean() < MAX_KLD_DECODE
