"""GgmlDevice: runs of cells, and every byte as the host device has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import SMALL, draw, greedy, last_logits
from tiny_models import TinySpec

from icecache_local import CacheConfig
from icecache_local import ggml as ggml_functions
from icecache_local.device.ggml import GgmlDevice, runs_to_send
from icecache_local.errors import ConfigError

N_CTX, N_BATCH = 2048, 64
GGML = replace(SMALL, device="ggml")


@given(
    owned=st.sets(st.integers(0, 60), min_size=1),
    share=st.randoms(use_true_random=False),
    gap=st.integers(0, 6),
)
def test_runs_cover_dirty_cells_and_owned_ones_alone(owned, share, gap) -> None:
    cells = np.array(sorted(owned))
    dirty = np.array(sorted(share.sample(sorted(owned), share.randint(1, len(owned)))))
    runs = runs_to_send(dirty, cells, gap)
    sent = [cell for first, last in runs for cell in range(first, last)]
    assert set(dirty) <= set(sent) <= owned
    assert sent == sorted(set(sent))
    for first, last in runs:
        clean = np.diff([cell for cell in dirty if first <= cell < last]) - 1
        assert (clean <= gap).all()
    for (_, last), (first, _) in zip(runs, runs[1:], strict=False):
        assert first - last > gap or not set(range(last, first)) <= owned


@pytest.mark.parametrize("arch", ["llama", "deepseek2", "gpt-oss"])
def test_all_bytes_as_on_the_host(arch, tiny_model, open_ice, rng) -> None:
    path, prompt = tiny_model(TinySpec(arch, dtype="f32")), draw(rng, 700)
    logits = []
    for config in (SMALL, GGML):
        ice = open_ice(path, N_CTX, N_BATCH, cache=config)
        ice.eval(prompt)
        rows = [last_logits(ice), *greedy(ice, 8)[1]]
        state = ice.save_state()
        next(ice.generate(prompt[:300] + prompt[:50], temp=0.0))
        rows += [last_logits(ice), *greedy(ice, 8)[1]]
        ice.load_state(state)
        rows += list(greedy(ice, 8)[1])
        ice._kv.check_integrity()
        logits.append(np.array(rows))
    assert all(isinstance(device, GgmlDevice) for device in ice._kv.devices.values())
    np.testing.assert_array_equal(*logits)


def test_a_step_takes_few_transfers(tiny_model, open_ice, rng, monkeypatch) -> None:
    path = tiny_model(TinySpec("llama", dtype="f32"))
    ice = open_ice(path, N_CTX, N_BATCH, cache=GGML)
    ice.eval(draw(rng, 700))
    ice.eval([65])
    calls = []
    for name in ("tensor_get", "tensor_set"):
        real = getattr(ggml_functions, name)
        counted = lambda *args, real=real, name=name: calls.append(name) or real(*args)  # noqa: E731
        monkeypatch.setattr(ggml_functions, name, counted)
    ice.eval([66])
    n_layers = len(ice._kv.devices)
    assert calls.count("tensor_get") == 3 * n_layers  # Q, and the new row of K and of V
    assert n_layers <= calls.count("tensor_set") <= 4 * n_layers


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of auto, host, ggml, cuda"):
        CacheConfig(device="gpu")
