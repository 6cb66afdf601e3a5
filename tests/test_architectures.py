"""Every architecture against stock llama.cpp: exact, or refused when it is loaded.

Each model has a few layers, one of each kind, and random weights. `tools/architectures_table.py`
makes docs/architectures.md from what these tests record.
"""

from __future__ import annotations

from contextlib import closing

import llama_cpp
import numpy as np
import pytest
from llama_cpp import llama_chat_format
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from test_exactness import assert_same_top, draw, feed, greedy, kld, last_logits
from tiny_models import ARCHITECTURES, PHI3_SHORT_CONTEXT, TinySpec, spec_of, write_lora

from icecache_local import CacheConfig, IceLlama
from icecache_local.errors import ConfigError, UnsupportedModelError
from icecache_local.gguf_info import read_model_info
from icecache_local.support import TESTED, verdict

N_CTX, N_BATCH = 1024, 64
SMALL = CacheConfig(budget=64)
MAX_KLD_PREFILL = 1e-5
MAX_KLD_DECODE = 1e-3  # mean over the decoded tokens
REFUSED = {
    "mpt": "ALiBi",
    "bloom": "ALiBi",
}
EXACT = [arch for arch in ARCHITECTURES if arch not in REFUSED]


def spec(arch: str) -> TinySpec:
    """The smallest model that has every kind of layer of the architecture."""
    return spec_of(arch, d=128, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=64, dtype="f32")


@pytest.mark.parametrize("arch", EXACT)
def test_prefill(arch, tiny_model, open_ice, open_stock, rng, record_property) -> None:
    path, prompt = tiny_model(spec(arch)), draw(rng, 640)
    stock = open_stock(path, N_CTX, N_BATCH, logits_all=True)
    ice = open_ice(path, N_CTX, N_BATCH, logits_all=True, cache=SMALL)
    for llm in (stock, ice):
        llm.eval(prompt)
    assert ice._kv.sparse
    divergence = kld(stock.scores[:640], ice.scores[:640]).max()
    record_property("prefill_kld", float(divergence))
    assert divergence < MAX_KLD_PREFILL


@pytest.mark.parametrize("arch", EXACT)
def test_decode(arch, tiny_model, open_ice, open_stock, rng, record_property) -> None:
    path, prompt = tiny_model(spec(arch)), draw(rng, 300)
    stock = open_stock(path, N_CTX, N_BATCH)
    ice = open_ice(path, N_CTX, N_BATCH, cache=CacheConfig(budget=512))
    for llm in (stock, ice):
        llm.eval(prompt)
    tokens, theirs = greedy(stock, 32)
    ice._kv.spill()
    rows = []
    for i in range(0, 32, 8):
        ice._kv.shuffle(rng)
        rows.append(feed(ice, tokens[i : i + 8]))
        ice._kv.check_integrity()
    ours = np.concatenate(rows)
    divergence = kld(theirs, ours).mean()
    record_property("decode_kld", float(divergence))
    assert_same_top(theirs, ours)
    assert divergence < MAX_KLD_DECODE


@pytest.mark.parametrize("arch", EXACT)
def test_small_budget_then_load(arch, tiny_model, open_ice, rng) -> None:
    ice = open_ice(tiny_model(spec(arch)), N_CTX, N_BATCH, cache=SMALL)
    ice.eval(draw(rng, 500))
    _, rows = greedy(ice, 40)
    assert np.isfinite(rows).all()
    ice._kv.check_integrity()
    for cache in ice._kv.layers.values():  # a slot without a token holds the remainder
        n_free = np.count_nonzero(cache.slots.token_in == 0, axis=1)
        np.testing.assert_array_equal(n_free, cache.selector.rest >= 0)
    state, suffix = ice.save_state(), draw(rng, 8)
    following = feed(ice, suffix)
    ice.reset()
    ice.eval(draw(rng, 300))
    ice.load_state(state)
    ice._kv.check_integrity()
    # llama.cpp packs the cells of a state anew, and sums in f16 in the order of its cells.
    assert kld(following, feed(ice, suffix)).mean() < MAX_KLD_DECODE


@pytest.mark.parametrize("arch", EXACT)
def test_cuts(arch, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt = tiny_model(spec(arch)), draw(rng, 500)
    stock = open_stock(path, N_CTX, N_BATCH, logits_all=True, flash_attn=False)
    flash = open_stock(path, N_CTX, N_BATCH, logits_all=True)
    ice = open_ice(path, N_CTX, N_BATCH, logits_all=True, cache=SMALL)
    ice.eval(prompt)
    feed(ice, draw(rng, 20))
    for cut in (499, 470, 300, 40):
        edited = [*prompt[:cut], *draw(rng, 32)]
        for llm in (ice, stock, flash):
            next(llm.generate(edited, temp=0.0))
        assert ice.n_tokens == len(edited)
        logits = [llm.scores[cut : len(edited)] for llm in (stock, flash, ice)]
        # Few tokens at once are summed in f16 by llama.cpp's flash attention, but not without.
        own = kld(logits[0], logits[1]).mean()
        assert kld(logits[0], logits[2]).mean() < max(MAX_KLD_PREFILL, 1.5 * own)
        ice._kv.check_integrity()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_verdict_of_the_header_is_that_of_loading(
    arch, tiny_model, open_ice, record_property
) -> None:
    path = tiny_model(spec(arch))
    info = read_model_info(path)
    supported, sentence = verdict(info)
    record_property("verdict", sentence)
    assert supported == (arch in EXACT)
    assert info.architecture in sentence and sentence.endswith(".")
    assert not supported or info.architecture in TESTED
    if supported:
        assert open_ice(path, N_CTX, N_BATCH)._kv.devices.keys() == set(info.cached_layers)
    else:
        with pytest.raises(UnsupportedModelError, match=REFUSED[arch]):
            open_ice(path, N_CTX, N_BATCH)


def test_every_architecture_called_tested_is_tested() -> None:
    assert TESTED == {ARCHITECTURES[arch].name for arch in EXACT}


@pytest.mark.parametrize("arch", sorted(REFUSED))
def test_graph_alone_refuses_what_the_header_refuses(arch, tiny_model, monkeypatch) -> None:
    """Whatever the header's check lets through is seen in the graph of a first token."""
    monkeypatch.setattr("icecache_local.llama.verdict", lambda info: (True, ""))
    with pytest.raises(UnsupportedModelError, match="llama_cpp.Llama"):
        IceLlama(str(tiny_model(spec(arch))), n_ctx=N_CTX, n_batch=N_BATCH, verbose=False)


@pytest.mark.parametrize("n_ctx", [PHI3_SHORT_CONTEXT, 2 * PHI3_SHORT_CONTEXT])
@pytest.mark.parametrize("budget", [64, PHI3_SHORT_CONTEXT + 64])
def test_phi3_has_the_rotary_factors_of_the_users_context(
    n_ctx, budget, tiny_model, open_ice, open_stock, rng
) -> None:
    path, prompt = tiny_model(spec("phi3")), draw(rng, 640)
    stock = open_stock(path, n_ctx, N_BATCH, logits_all=True)
    ice = open_ice(path, n_ctx, N_BATCH, logits_all=True, cache=CacheConfig(budget=budget))
    for llm in (stock, ice):
        llm.eval(prompt)
    assert kld(stock.scores[:640], ice.scores[:640]).max() < MAX_KLD_PREFILL


@pytest.mark.parametrize("cuts", [(400, 350), (400, 40), (499, 30)])
def test_cuts_before_llama_cpp_has_rotated(cuts, tiny_model, open_ice, open_stock, rng) -> None:
    """Phi-3's rotations also scale, so that a pending one must not reach the cells unseen."""
    path, prompt, suffix = tiny_model(spec("phi3")), draw(rng, 500), draw(rng, 64)
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    ice.eval(prompt)
    for cut in cuts:
        ice.n_tokens = cut
        ice._ctx.kv_cache_seq_rm(-1, cut, -1)
    for llm in (stock, ice):
        llm.eval(prompt[: cuts[-1]] + suffix if llm is stock else suffix)
    assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < MAX_KLD_PREFILL
    ice._kv.check_integrity()
    assert np.isfinite(greedy(ice, 4)[1]).all()


def test_swa_full_off(tiny_model, open_stock, rng) -> None:
    path, prompt = tiny_model(spec("gemma3")), draw(rng, 500)
    options = {"n_ctx": N_CTX, "n_batch": N_BATCH, "logits_all": True, "n_threads": 1}
    stock = open_stock(path, N_CTX, N_BATCH, logits_all=True)
    with closing(
        IceLlama(str(path), cache=SMALL, swa_full=False, verbose=False, **options)
    ) as ice:
        for cut in (500, 499, 300, 40):
            edited = [*prompt[:cut], *draw(rng, 320)]
            for llm in (ice, stock):
                next(llm.generate(edited, temp=0.0))
            divergence = kld(stock.scores[cut : len(edited)], ice.scores[cut : len(edited)])
            assert divergence.mean() < MAX_KLD_PREFILL


@pytest.mark.parametrize("arch", ["lfm2", "gemma3"])
def test_what_a_cut_loses_is_read_again(arch, tiny_model, open_ice, open_stock, rng) -> None:
    path, prompt, suffix = tiny_model(spec(arch)), draw(rng, 500), draw(rng, 20)
    stock = open_stock(path, N_CTX, N_BATCH, flash_attn=False)
    ice = open_ice(path, N_CTX, N_BATCH, cache=SMALL)
    stock.eval(prompt[:350] + suffix)
    ice.eval(prompt)
    ice.n_tokens = 350
    ice.eval(suffix)
    assert ice.n_tokens == ice._kv.n_tokens == 370
    assert kld(last_logits(stock)[None], last_logits(ice)[None]).max() < MAX_KLD_PREFILL


def test_media_is_refused(tiny_model, open_ice) -> None:
    handler = object.__new__(llama_chat_format.Llava15ChatHandler)
    path = tiny_model(spec("qwen2vl"))
    with pytest.raises(ConfigError, match="text alone"):
        IceLlama(str(path), chat_handler=handler, verbose=False)
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(ConfigError, match="text alone: leave the image_url out"):
        open_ice(path, N_CTX, N_BATCH).create_chat_completion(
            [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]
        )


@pytest.mark.parametrize("arch", ["llama", "gemma3", "lfm2"])
def test_draft_model(arch, tiny_model, open_ice, rng) -> None:
    """Repetitive text is guessed from itself; wrong guesses are cut."""
    path, prompt = tiny_model(spec(arch)), draw(rng, 20) * 20
    ice = open_ice(path, N_CTX, N_BATCH, logits_all=True, cache=CacheConfig(budget=448))
    alone = [token for token, _ in zip(ice.generate(prompt, temp=0.0), range(24), strict=False)]
    ice.reset()
    ice.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=4)
    drafted = [token for token, _ in zip(ice.generate(prompt, temp=0.0), range(24), strict=False)]
    assert drafted == alone


def test_lora_adapter(tiny_model, tmp_path, open_stock, rng) -> None:
    path, prompt = tiny_model(spec("llama")), draw(rng, 640)
    adapter = write_lora(tmp_path / "lora.gguf", spec("llama"))
    options = {"n_ctx": N_CTX, "n_batch": N_BATCH, "logits_all": True, "n_threads": 1}
    options |= {"n_threads_batch": 1, "verbose": False, "lora_path": str(adapter)}
    plain = open_stock(path, N_CTX, N_BATCH, logits_all=True)
    stock = llama_cpp.Llama(str(path), flash_attn=True, **options)
    ice = IceLlama(str(path), cache=SMALL, **options)
    with closing(stock), closing(ice):
        for llm in (plain, stock, ice):
            llm.eval(prompt)
        assert kld(plain.scores[:640], stock.scores[:640]).mean() > 0.01
        assert kld(stock.scores[:640], ice.scores[:640]).max() < MAX_KLD_PREFILL
