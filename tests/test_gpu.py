"""On a GPU: exactness against llama.cpp with everything on the same GPU."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from llama_cpp import Llama
from test_exactness import assert_same_top, draw, feed, greedy, kld, last_logits
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama, ggml

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ggml.gpus(), reason="llama.cpp sees no GPU"),
]
N_CTX, N_BATCH = 4096, 128
MAX_KLD = 1e-3  # mean; both sides round to f16 in places of their own
ARCHS = ["llama", "qwen3", "gemma3", "gpt-oss", "deepseek2"]


@pytest.fixture(params=["auto", "ggml"])
def device(request) -> str:
    """How the cells are reached."""
    return request.param


def opened(kind: type, path, n_gpu_layers: int = -1, **options) -> Llama:
    """A context with layers on the GPU."""
    common = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_threads": 2, "verbose": False}
    llm = kind(str(path), n_gpu_layers=n_gpu_layers, **common, **options)
    return closing(llm)


@pytest.mark.parametrize("n_gpu_layers", [-1, 2], ids=["all layers", "split"])
@pytest.mark.parametrize("arch", ARCHS)
def test_reading_a_prompt(arch, n_gpu_layers, device, tiny_model, rng) -> None:
    path, prompt = tiny_model(TinySpec(arch, dtype="f32")), draw(rng, 3000)
    config = CacheConfig(budget=128, device=device, stream_limit=4 << 20)
    rows = []
    with opened(Llama, path, n_gpu_layers, flash_attn=True, n_ubatch=N_BATCH) as stock:
        for first in range(0, 3000, N_BATCH):
            stock.eval(prompt[first : first + N_BATCH])
            rows.append(last_logits(stock))
    with opened(IceLlama, path, n_gpu_layers, cache=config) as ice:
        ours = []
        for first in range(0, 3000, N_BATCH):
            ice.eval(prompt[first : first + N_BATCH])
            ours.append(last_logits(ice))
        assert ice._kv.sparse
        ice._kv.check_integrity()
        greedy(ice, 20)
        ice._kv.check_integrity()
    assert kld(np.array(rows), np.array(ours)).mean() < MAX_KLD
    assert_same_top(np.array(rows), np.array(ours))


@pytest.mark.parametrize("arch", ARCHS[:2])
def test_decoding_with_everything_resident(arch, device, tiny_model, rng) -> None:
    path, prompt = tiny_model(TinySpec(arch, dtype="f32")), draw(rng, 600)
    with opened(Llama, path, flash_attn=True, n_ubatch=N_BATCH) as stock:
        stock.eval(prompt)
        tokens, theirs = greedy(stock, 48)
    with opened(IceLlama, path, cache=CacheConfig(budget=768, device=device)) as ice:
        ice.eval(prompt)
        ice._kv.spill()
        rows = []
        for i in range(0, 48, 8):
            ice._kv.shuffle(rng)
            rows.append(feed(ice, tokens[i : i + 8]))
            ice._kv.check_integrity()
    ours = np.concatenate(rows)
    assert kld(theirs, ours).mean() < MAX_KLD
    assert_same_top(theirs, ours)
