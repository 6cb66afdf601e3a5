"""IceLlama with most of its pages on the disk: the same logits, bit for bit."""

import click
import numpy as np
import pytest
from tiny_models import TinySpec

from icecache_local import CacheConfig, IceLlama
from icecache_local.cli import main
from icecache_local.cli_options import Size, cache_config
from icecache_local.errors import ConfigError, DiskTierError

SPEC = TinySpec("qwen3", n_layers=4, d=64, n_heads=4, n_kv_heads=2, head_dim=64, n_ctx_train=4096)
BUDGET = dict(budget=64, sink=16, window=16, candidate_pages=8)
N_CTX, N_BATCH = 3072, 128
LIMIT = 3 << 20  # of 6.4 MB that 3,000 tokens take in four layers


def _history(llm: IceLlama) -> list[np.ndarray]:
    """Logits after reading, decoding, cutting, reading on and decoding."""
    rng = np.random.default_rng(3)
    tokens, logits = rng.integers(0, SPEC.n_vocab, 3000).tolist(), []

    def note() -> None:
        logits.append(np.ctypeslib.as_array(llm._ctx.get_logits(), (SPEC.n_vocab,)).copy())

    llm.eval(tokens[:2500])
    note()
    for token in tokens[2500:2540]:
        llm.eval([token])
        note()
    llm.n_tokens = 1800
    llm.eval(tokens[1800:2300])
    note()
    for token in tokens[2300:2340]:
        llm.eval([token])
        note()
    return logits


def test_logits_are_those_of_everything_in_memory(tiny_model, open_ice):
    path = tiny_model(SPEC)
    exact = CacheConfig(**BUDGET, ram_limit=LIMIT, unread=0)
    with_limit = open_ice(path, N_CTX, N_BATCH, cache=exact)
    without = open_ice(path, N_CTX, N_BATCH, cache=CacheConfig(**BUDGET))
    held = []
    for ours, expected in zip(_watch(with_limit, held), _history(without), strict=True):
        assert np.array_equal(ours, expected)
    assert max(held) <= LIMIT, "the limit did not hold"
    stats = with_limit.cache_stats
    assert stats.disk_bytes > 0 and stats.disk_read_bytes > 0
    with_limit._kv.check_integrity()


def _watch(llm: IceLlama, held: list[int]) -> list[np.ndarray]:
    """`_history`, noting the bytes of pages in memory whenever a layer is done."""
    on_layer = llm._kv.hook.on_layer

    def watched(place: int) -> None:
        on_layer(place)
        tiers = llm._kv.budget.tiers
        held.append(sum(t.nbytes_held for t in tiers if t._ahead is None))

    llm._kv.hook.on_layer = watched
    return _history(llm)


def test_a_lost_page_ends_the_sequence_with_one_sentence(tiny_model, open_ice):
    llm = open_ice(tiny_model(SPEC), N_CTX, N_BATCH, cache=CacheConfig(**BUDGET, ram_limit=LIMIT))
    tokens = np.random.default_rng(3).integers(0, SPEC.n_vocab, 2500).tolist()
    llm.eval(tokens)
    for tier in llm._kv.budget.tiers:
        tier.disk._spill.close()
    with pytest.raises(DiskTierError, match="make room there, or raise ram_limit"):
        llm.eval(tokens[:100])
    assert llm._kv.n_tokens == 0
    llm.reset()
    llm.eval(tokens[:200])


def test_a_limit_below_one_layer_is_refused(tiny_model, open_ice):
    with pytest.raises(ConfigError, match="one layer at a time.*raise ram_limit or lower n_ctx"):
        open_ice(tiny_model(SPEC), N_CTX, N_BATCH, cache=CacheConfig(**BUDGET, ram_limit=1 << 20))
    with pytest.raises(ConfigError, match="must be positive"):
        CacheConfig(ram_limit=0)


def test_a_size_may_have_a_unit():
    convert = Size().convert
    assert convert("4096", None, None) == 4096
    assert convert("1.5G", None, None) == convert("1536 MiB", None, None) == 3 << 29
    for wrong in ("8X", "-1G", "", "G"):
        with pytest.raises(click.BadParameter, match="is not a size; write 8G or 500M"):
            convert(wrong, None, None)


def test_the_command_line_may_ask_for_everything_to_be_read(capsys):
    assert cache_config(256, None, None, 1 << 30, 0.0).most_unread == 0
    assert cache_config(256, None, None, 1 << 30).most_unread == 0.01
    with pytest.raises(SystemExit):
        main(["ask", "--unread", "0.9", "Why?"])
    assert "0.9 is not in the range" in capsys.readouterr().err


def test_the_plan_tells_what_lies_on_the_disk(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--n-ctx", "32768", "--ram-limit", "24M"])
    out = capsys.readouterr().out
    assert "host tier         24.0 MiB" in out and "on the disk" in out and "It fits" in out
