"""Headers of model files, and what the planner makes of them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TinySpec

from icecache_local import CacheConfig, embedded
from icecache_local.errors import (
    HostMemoryError,
    IceCacheError,
    ModelFileError,
    UnsupportedModelError,
)
from icecache_local.gguf_info import ModelInfo, read_model_info
from icecache_local.planner import (
    available_bytes,
    check_fits,
    compute_buffer_bytes,
    format_bytes,
    largest_n_ctx,
    make_plan,
)

REPOSITORY = Path(__file__).parent.parent
EMBEDDED = embedded.model_path().read_bytes()
HEADER_BYTES = 140_000  # of the embedded model, vocabulary included
CONFIG = CacheConfig()


def write_header(path: Path, arch: str = "llama", tensors: int = 1, **metadata: object) -> Path:
    """Write a model of six blocks with little in it; metadata override or extend its keys.

    A dot in a key is written as two underscores, None removes a key.
    """
    keys = {
        "block_count": 6,
        "embedding_length": 64,
        "context_length": 4096,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        name = key if key.startswith(("split.", "general.")) else f"{arch}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for i in range(tensors):
        writer.add_tensor("token_embd.weight" if i == 0 else f"t{i}", np.zeros((100, 64), "f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def header(tmp_path: Path):
    """A factory of ModelInfo from metadata."""

    def read(arch: str = "llama", **metadata: object) -> ModelInfo:
        return read_model_info(write_header(tmp_path / "model.gguf", arch, **metadata))

    return read


def test_embedded_model_is_read_as_documented():
    info = read_model_info(embedded.model_path())
    assert (info.architecture, info.name, info.n_layers) == ("qwen3", "retr-5m", 6)
    assert (info.n_embd, info.n_ff, info.n_vocab, info.n_ctx_train) == (256, 512, 4096, 65536)
    shape = info.shape
    assert (shape.n_layers, shape.n_heads, shape.n_kv_heads) == (6, 4, 2)
    assert (shape.head_dim_k, shape.head_dim_v) == (64, 64)
    assert info.token_bytes == 6 * shape.token_bytes
    assert 9_191_424 <= info.weight_bytes <= len(EMBEDDED)


def test_head_dim_and_kv_heads_default_to_those_of_the_query(header):
    info = header(**{"attention__head_count_kv": None})
    assert info.kv_heads == (4,) * 6
    assert (info.head_dim_k, info.head_dim_v, info.n_vocab) == (16, 16, 100)


def test_sliding_layers_follow_the_listed_pattern(header):
    pattern = [True, False, True, True, False, True]
    info = header(
        "gemma4", attention__sliding_window=512, attention__sliding_window_pattern=pattern
    )
    assert info.sliding == tuple(pattern)
    assert info.cached_layers == (1, 4)
    assert info.shape.n_layers == 2


def test_sliding_layers_follow_the_period_of_the_architecture(header):
    assert header("gemma3", attention__sliding_window=512).cached_layers == (5,)
    assert header("gpt-oss", attention__sliding_window=128).cached_layers == (1, 3, 5)
    smallthinker = header("smallthinker", attention__sliding_window=4096)
    assert smallthinker.cached_layers == (0, 4)


@pytest.mark.parametrize("arch", ["llama", "phi3", "qwen2"])
def test_windows_that_llama_cpp_ignores_are_ignored(header, arch):
    info = header(arch, attention__sliding_window=512)
    assert (info.n_swa, len(info.cached_layers)) == (0, 6)


def test_recurrent_layers_hold_no_cache(header):
    by_heads = header("lfm2", attention__head_count_kv=[0, 0, 2, 0, 2, 0])
    assert by_heads.cached_layers == (2, 4) and by_heads.is_recurrent
    by_interval = header("qwen3next", full_attention_interval=3)
    assert by_interval.cached_layers == (2, 5) and by_interval.is_recurrent


def test_shared_and_prediction_layers_hold_no_cache(header):
    assert header("gemma4", attention__shared_kv_layers=2).cached_layers == (0, 1, 2, 3)
    assert header("glm4moe", nextn_predict_layers=1).n_layers == 5


def test_mla_caches_keys_only(header):
    info = header(
        "deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__kv_lora_rank=512,
        attention__key_length_mla=192,
    )
    assert info.is_mla
    assert info.token_bytes == 6 * 2 * 576


def test_unequal_layers_have_no_one_shape(header):
    info = header("deci", attention__head_count_kv=[2, 2, 4, 4, 2, 2])
    assert info.token_bytes == 16 * 2 * 32
    with pytest.raises(UnsupportedModelError, match="KV heads"):
        info.shape  # noqa: B018


@pytest.mark.parametrize("arch", ["bert", "nomic-bert-moe", "gemma-embedding", "t5encoder"])
def test_encoders_are_refused(header, arch):
    with pytest.raises(UnsupportedModelError, match="only makes embeddings"):
        header(arch)


def test_pooled_and_non_causal_models_are_refused(header):
    with pytest.raises(UnsupportedModelError, match="only makes embeddings"):
        header("qwen3", pooling_type=3)
    with pytest.raises(UnsupportedModelError, match="only makes embeddings"):
        header("llama", attention__causal=False)


@pytest.mark.parametrize("arch", ["clip", "t5", "dream", "wavtokenizer-dec"])
def test_other_kinds_of_models_are_refused(header, arch):
    with pytest.raises(UnsupportedModelError, match="; pass "):
        header(arch)


def test_models_without_attention_are_refused(header):
    with pytest.raises(UnsupportedModelError, match="no attention layers"):
        header("mamba", attention__head_count=None)
    with pytest.raises(UnsupportedModelError, match="no attention layers"):
        header("mamba2", attention__head_count=0)
    with pytest.raises(UnsupportedModelError, match="no attention layers"):
        header("llama", attention__head_count_kv=[0] * 6)


def test_contradicting_metadata_are_refused(header):
    with pytest.raises(ModelFileError, match="contradict"):
        header(attention__head_count_kv=[2, 2])
    with pytest.raises(ModelFileError, match="layer count"):
        header(block_count=None)


def test_missing_file_directory_and_other_files(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        read_model_info(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="is a directory"):
        read_model_info(tmp_path)
    for data in (b"", b"GG", b"not a model at all"):
        (tmp_path / "text.gguf").write_bytes(data)
        with pytest.raises(ModelFileError, match="not a GGUF file"):
            read_model_info(tmp_path / "text.gguf")


def test_big_endian_files_are_refused(tmp_path):
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_array("llama.x", [1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="big-endian"):
        read_model_info(path)


@settings(max_examples=40, deadline=None)
@given(size=st.one_of(st.integers(4, HEADER_BYTES), st.integers(4, len(EMBEDDED) - 1)))
def test_every_truncation_is_noticed(tmp_path_factory, size):
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(EMBEDDED[:size])
    with pytest.raises(ModelFileError, match="truncated|damaged"):
        read_model_info(path)


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(4, 1200), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_never_raise_anything_else(tmp_path_factory, edits):
    data = bytearray(EMBEDDED)
    for place, value in edits:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data)
    try:
        info = read_model_info(path)
    except IceCacheError as error:
        assert str(path.name) in str(error)
    else:
        assert info.n_layers >= 1 and info.token_bytes > 0


def test_a_layer_count_that_no_memory_holds_is_refused(tmp_path):
    path = tmp_path / "many.gguf"
    write_header(path, block_count=3_590_324_228)
    with pytest.raises(ModelFileError, match="3590324228 layers"):
        read_model_info(path)


def test_split_models_sum_up_their_parts(tmp_path):
    for part, tensors in ((1, 1), (2, 3)):
        write_header(
            tmp_path / f"m-{part:05d}-of-00002.gguf",
            tensors=tensors,
            **{"split.count": 2, "split.no": part - 1},
        )
    info = read_model_info(tmp_path / "m-00001-of-00002.gguf")
    assert info.weight_bytes == 4 * 100 * 64 * 2
    with pytest.raises(ModelFileError, match=r"pass the first part, m-00001-of-00002\.gguf"):
        read_model_info(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelFileError, match="m-00002-of-00002.gguf does not exist"):
        read_model_info(tmp_path / "m-00001-of-00002.gguf")
    renamed = (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="its name"):
        read_model_info(renamed)


def test_long_vocabulary_is_counted_without_being_read(tmp_path):
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(70_000)])
    writer.add_token_scores([0.0] * 70_000)
    writer.add_context_length(123)  # behind the vocabulary
    writer.add_tensor("token_embd.weight", np.zeros((70_000, 8), "f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_model_info(path)
    assert (info.n_vocab, info.n_ctx_train) == (70_000, 123)


@given(
    n_ctx=st.integers(1, 1 << 20), available=st.integers(0, 1 << 40), budget=st.integers(8, 4096)
)
def test_max_n_ctx_is_the_last_that_fits(n_ctx, available, budget):
    info, config = read_model_info(embedded.model_path()), CacheConfig(budget=budget)
    plan = make_plan(info, config, n_ctx, available)
    best = plan.max_n_ctx
    assert best % 256 == 0
    assert not make_plan(info, config, best + 256 + 1, available).fits
    if best:
        assert make_plan(info, config, best, available).fits
    if n_ctx <= best:
        assert plan.fits
    assert largest_n_ctx(info, config, available) == max(256, best)


def test_check_fits_says_how_much_would():
    info = read_model_info(embedded.model_path())
    small = make_plan(info, CONFIG, 8192)
    check_fits(info, CONFIG, 8192, small.total)
    with pytest.raises(HostMemoryError, match="lower n_ctx to 8192 or less"):
        check_fits(info, CONFIG, 65536, small.total)
    with pytest.raises(HostMemoryError, match="smaller model"):
        check_fits(info, CONFIG, 65536, 1000)


def test_sliding_layers_take_cells_but_no_host_memory(header):
    info = header("gemma3", attention__sliding_window=512)
    plan = make_plan(info, CONFIG, 4096)
    one_layer = 2 * 2 * 32
    assert plan.cells == 1280 * 6 * one_layer  # budget, ubatch and window, in every layer
    assert plan.full_kv == 4096 * one_layer + 1024 * 5 * one_layer
    assert any("512 tokens only" in note for note in plan.notes)


def test_notes_name_what_is_special(header):
    info = header("qwen3next", full_attention_interval=3)
    assert any("2 of 6 layers" in note for note in make_plan(info, CONFIG, 1024).notes)
    assert any("trained for 4,096" in note for note in make_plan(info, CONFIG, 8192).notes)
    assert make_plan(header(), CONFIG, 4096).notes == ()


# Width, feed-forward, vocabulary, experts used; MiB that llama-cpp-python 0.3.36 logs on the
# CPU with flash attention, n_ubatch 512 and 1,024 cells.
@pytest.mark.parametrize(
    ("n_embd", "n_ff", "n_vocab", "n_experts_used", "logged"),
    [
        (1024, 3072, 151936, 0, 309.76),
        (4096, 14336, 32000, 0, 109.01),
        (4096, 14336, 128256, 0, 266.50),
        (2048, 8192, 4096, 0, 65.01),
        (2048, 11008, 4096, 0, 81.51),
        (2048, 8 * 768, 4096, 8, 89.01),
        (256, 512, 4096, 0, 11.51),
    ],
)
def test_compute_buffer_is_near_what_llama_cpp_logs(n_embd, n_ff, n_vocab, n_experts_used, logged):
    info = replace(
        read_model_info(embedded.model_path()),
        n_embd=n_embd,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_experts_used=n_experts_used,
    )
    ratio = compute_buffer_bytes(info, 1024) / 2**20 / logged
    assert 0.93 <= ratio <= 1.13


def test_plan_agrees_with_what_is_allocated(tiny_model, open_ice, rng):
    path = tiny_model(TinySpec(arch="qwen3", head_dim=128, n_layers=1, d=128))
    llm = open_ice(path, n_ctx=8192)
    llm.eval(rng.integers(32, 127, 8192).tolist())
    stats, plan = llm.cache_stats, make_plan(read_model_info(path), CONFIG, 8192)
    assert plan.cells == stats.device_bytes
    assert plan.host == pytest.approx(stats.host_bytes, rel=0.1)
    assert plan.index == pytest.approx(stats.index_bytes, rel=0.15)


def test_available_memory_is_no_more_than_the_machine_has():
    import psutil

    assert 0 < available_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1 << 20, "1.00 MiB"),
        (int(9.996 * 2**30), "10.0 GiB"),
        (int(99.96 * 2**30), "100 GiB"),
        (999 << 30, "999 GiB"),
    ],
)
def test_sizes_have_three_digits(n, text):
    assert format_bytes(n) == text


def test_models_txt_is_what_the_planner_says_today():
    table = runpy.run_path(str(REPOSITORY / "tools" / "models_table.py"))["table"]
    assert (REPOSITORY / "models.txt").read_text() == table()


def test_importing_planner_and_header_reader_is_light():
    code = (
        "import sys, icecache_local.planner, icecache_local.gguf_info;"
        "print([m for m in ('gguf', 'numba', 'llama_cpp') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stderr
