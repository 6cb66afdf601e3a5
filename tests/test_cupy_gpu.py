"""What is said when cupy, its driver or the card fails; the host tier outlives it."""

from __future__ import annotations

import sys
import types

import pytest
from icecache_local._native import ffi
from test_device_cuda import put_on
from test_exactness import MAX_KLD_PREFILL, N_BATCH, N_CTX, SMALL, draw, kld, last_logits
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama
from icecache_local.device import choose
from icecache_local.device.cupy_gpu import CupyGpu, translated
from icecache_local.errors import ConfigError, DeviceError, MissingExtraError


class CUDARuntimeError(RuntimeError):
    """As cupy raises it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class CUBLASError(CUDARuntimeError):
    """As cupy raises it."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("allocating 1 GiB"), "out of memory: lower n_gpu_layers, n_batch or"),
        (CUDARuntimeError(2, "out of memory"), "out of memory: lower n_gpu_layers"),
        (CUBLASError(3, "CUBLAS_STATUS_ALLOC_FAILED"), "out of memory: lower n_gpu_layers"),
        (CUDARuntimeError(35, "insufficient driver"), "update the driver"),
        (CUDARuntimeError(719, "unspecified launch failure"), "open it in a new process"),
        (CUBLASError(2, "not initialized"), "open it in a new process"),
        (ImportError("libcublasLt.so.13"), r"lacks a CUDA library .*icecache-local\[cuda\]"),
    ],
)
def test_every_failure_says_what_to_do(error, sentence) -> None:
    with pytest.raises(DeviceError, match=sentence), translated():
        raise error


def test_interrupts_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt), translated():
        raise KeyboardInterrupt


def test_cupy_without_a_driver() -> None:
    cupy = pytest.importorskip("cupy", reason="needs cupy: the extra 'cuda'")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        with pytest.raises(DeviceError, match="update the driver"):
            CupyGpu(1 << 20)
    else:
        pytest.skip("there is a driver")


class FailingKernels:
    """A card on which every launch fails once `failing` is set."""

    def __init__(self, gpu, error: Exception) -> None:
        self._gpu, self._error, self.failing = gpu, error, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._gpu, name)

    def active(self):
        return translated()

    def launch(self, *args: object) -> None:
        if self.failing:
            raise self._error
        self._gpu.launch(*args)


@pytest.mark.parametrize("n_new", [1, 90])
@pytest.mark.parametrize("error", [MemoryError("no more"), CUDARuntimeError(719, "lost")])
def test_the_host_tier_outlives_a_failure(
    n_new, error, gpu, tiny_model, open_ice, open_stock, rng
) -> None:
    path, prompt = tiny_model(TinySpec("llama", dtype="f32")), draw(rng, 600)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    card = FailingKernels(gpu, error)
    put_on(card, ice)
    ice.eval(prompt[:500])
    ice.eval(prompt[500:501])
    card.failing = True
    with pytest.raises(DeviceError):
        ice.eval(prompt[501 : 501 + n_new])
    card.failing = False
    assert ice.n_tokens == ice._kv.n_tokens == 501
    ice._kv.check_integrity()
    ice.eval(prompt[501:])
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    stock.eval(prompt)
    assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < 10 * MAX_KLD_PREFILL


def fake_buffers(monkeypatch, names: list[str]) -> ffi.CData:
    """A layer whose K, V, queries and output lie in buffers of these names."""
    layer = ffi.new("ice_layer *")
    for number, name in enumerate(("k_buffer", "v_buffer", "q_buffer", "out_buffer")):
        setattr(layer, name, ffi.cast("void *", 1 + number))
    layer.n_cells, layer.n_kv_heads, layer.dk, layer.dv = 4, 1, 8, 8
    monkeypatch.setattr(choose.ggml, "buffer_name", lambda at: names[at - 1].encode())
    monkeypatch.setattr(choose.ggml, "buffer_is_host", lambda at: "CPU" in names[at - 1])
    return layer[0]


@pytest.mark.parametrize("names", [["CUDA0"] * 4, ["CUDA1"] * 4])
def test_cells_on_a_card_without_cupy(names, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    layer = fake_buffers(monkeypatch, names)
    devices = choose.open_devices({0: layer, 1: layer}, CacheConfig(), None)
    assert {type(device).__name__ for device in devices.values()} == {"GgmlDevice"}
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "pip install 'icecache-local[cuda]'" in warnings[0]
    with pytest.raises(MissingExtraError, match="cupy cannot be imported"):
        choose.open_devices({0: layer}, CacheConfig(device="cuda"), None)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["CUDA0"] * 4, "CudaDevice"),
        (["CUDA0", "CUDA0", "CUDA0", "CUDA1"], "GgmlDevice"),
        (["Vulkan0"] * 4, "GgmlDevice"),
        (["CPU", "CPU", "CPU", "CUDA0"], "GgmlDevice"),
        (["CUDA_Host"] * 4, "GgmlDevice"),
    ],
)
def test_each_layer_by_its_own_memory(names, kind, monkeypatch) -> None:
    opened = []
    monkeypatch.setattr(choose, "CupyGpu", lambda at: opened.append(at) or types.SimpleNamespace())
    layer = fake_buffers(monkeypatch, names)
    devices = choose.open_devices({0: layer, 1: layer}, CacheConfig(), None)
    assert {type(device).__name__ for device in devices.values()} == {kind}
    assert len(opened) == (kind == "CudaDevice")  # one card for both layers
    if kind != "CudaDevice":
        with pytest.raises(ConfigError, match="leave device out"):
            choose.open_devices({0: layer}, CacheConfig(device="cuda"), None)


def test_forced_kinds_are_refused_where_they_cannot_reach(monkeypatch, tiny_model) -> None:
    path = tiny_model(TinySpec("llama", dtype="f32"))
    with pytest.raises(ConfigError, match='device is "cuda".*lie in CPU'):
        IceLlama(str(path), n_ctx=N_CTX, cache=CacheConfig(device="cuda"), verbose=False)
    layer = fake_buffers(monkeypatch, ["Vulkan0"] * 4)
    with pytest.raises(ConfigError, match='device is "host".*lie in Vulkan0'):
        choose.open_devices({0: layer}, CacheConfig(device="host"), None)


def test_limits_of_the_stream_are_checked() -> None:
    with pytest.raises(ConfigError, match="stream_limit is 0 bytes"):
        CacheConfig(stream_limit=0)
