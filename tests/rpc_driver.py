"""A model on another process's device against the same one here; run by test_device_rpc.py.

A program of its own: llama.cpp keeps a registered server for the life of the process, and ends
the process when the server is gone.
"""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np
import rpc_backend
from llama_cpp import Llama
from test_exactness import MAX_KLD_PREFILL, SMALL, assert_same_top, draw, greedy, kld, last_logits

from icecache_local import IceLlama
from icecache_local.device.ggml import GgmlDevice
from icecache_local.device.host import HostDevice
from icecache_local.vram import gpus


def history(llm: IceLlama, prompt: list[int], rng: np.random.Generator) -> np.ndarray:
    """Logits of reading, selective decoding, a cut, a restored state, and all tokens forgotten."""
    rows = []
    llm.eval(prompt)
    rows.append(last_logits(llm))
    rows += list(greedy(llm, 12)[1])
    llm._kv.check_integrity()
    state = llm.save_state()
    for cut in (650, 300, 40):
        next(llm.generate(prompt[:cut] + draw(rng, 70), temp=0.0))
        rows.append(last_logits(llm))
        rows += list(greedy(llm, 4)[1])
        llm._kv.check_integrity()
    llm.load_state(state)
    rows += list(greedy(llm, 4)[1])
    llm._kv.check_integrity()
    llm.reset()
    llm.eval(prompt[:100])
    rows.append(last_logits(llm))
    return np.array(rows)


def main(path: str, n_gpu_layers: int, n_remote: int) -> None:
    """Compare; an AssertionError tells what differs."""
    (gpu,) = gpus()
    assert gpu.name == "RPC0" and 0 < gpu.free <= gpu.total
    prompt = draw(np.random.default_rng(0), 700)
    options = {"n_ctx": 2048, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1}
    options |= {"model_path": path, "verbose": False}
    there = options | {"n_gpu_layers": n_gpu_layers}
    with closing(IceLlama(cache=SMALL, **options)) as ice:
        expected = history(ice, prompt, np.random.default_rng(1))
    with closing(IceLlama(cache=SMALL, **there)) as ice:
        devices = [type(device) for device in ice._kv.devices.values()]
        assert devices.count(GgmlDevice) == n_remote, devices
        assert devices.count(HostDevice) == len(devices) - n_remote
        ours = history(ice, prompt, np.random.default_rng(1))
    np.testing.assert_array_equal(ours, expected)
    with closing(Llama(flash_attn=True, **there)) as stock:
        stock.eval(prompt)
        theirs = last_logits(stock)[None]
    assert kld(theirs, ours[:1]).max() < 10 * MAX_KLD_PREFILL  # stock sums in f16
    assert_same_top(theirs, ours[:1])


if __name__ == "__main__":
    with rpc_backend.server() as endpoint:
        rpc_backend.register(endpoint)
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
