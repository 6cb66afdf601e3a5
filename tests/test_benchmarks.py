"""Every benchmark runs, at a size that says nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from icecache_local import embedded
from icecache_local.gguf_info import read_model_info

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SLICE = "--layers 1 --type q8_0 --repeats 1 --threads 1 --lengths 1200"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmarks write models and numbers."""
    return tmp_path_factory.mktemp("benchmarks")


def run(out: Path, command: str) -> str:
    """What a benchmark prints; its output is what counts, so warnings fail nothing."""
    done = subprocess.run(
        [sys.executable, FOLDER / command.split()[0], *command.split()[1:]],
        env=os.environ | {"ICECACHE_BENCHMARKS": str(out)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(out: Path, name: str) -> dict:
    """What a benchmark wrote as JSON."""
    return json.loads((out / f"{name}.json").read_text())


def test_decoding_is_timed_and_drawn(out) -> None:
    assert "hit rate" in run(out, f"decode.py {SLICE}")
    (row,) = numbers(out, "decode")["rows"]
    assert row["n_tokens"] == 1200 and 0 < row["ours_ms"] and 0 < row["stock_off_ms"]
    assert row["index_bytes"] > 0, "the sequence did not outgrow the cells"
    run(out, f"plot_decode.py --json {out}/decode.json --png {out}/decode.png")
    assert (out / "decode.png").stat().st_size > 1000


def test_reading_is_timed(out) -> None:
    run(out, f"prefill.py {SLICE}")
    (row,) = numbers(out, "prefill")["rows"]
    assert all(row[f"{name}_tps"] > 0 for name in ("ours", "stock_on", "stock_off"))


def test_attention_is_timed(out) -> None:
    text = run(
        out,
        "attention.py --queries 1,8 --dims 64 --past 256 --threads 1 --heads 2 --kv-heads 1 "
        "--seconds 0",
    )
    assert len([line for line in text.splitlines() if line.split()[:1] in (["1"], ["8"])]) == 2


def test_the_index_is_measured_on_keys_that_were_recorded(out) -> None:
    assert "(expected " in run(out, "record.py --tokens 1024 --questions 1")
    files = f"--recorded {out}/recorded.npz --json {out}/index.json"
    run(out, f"index.py --tokens 4096 --queries 2 {files}")
    rows = numbers(out, "index")["rows"]
    ours = [row["mass"] for row in rows if row["method"] == "tokens"]
    n_layers = read_model_info(embedded.model_path()).n_layers
    assert len(ours) == 6 + 2 * n_layers and min(ours) > 0.9
    assert {"recorded, layer 0", "cluster"} <= {row["data"] for row in rows}


@pytest.mark.parametrize("model", ["reference", "slice", str(embedded.model_path())])
def test_sessions_are_measured_beside_their_rivals(out, model) -> None:
    parts = " ".join(f"--part {p}" for p in ("questions", "amplification", "decoding", "rivals"))
    command = f"sessions.py --model {model} --tokens 1200 --layers 2 --threads 1 --folder {out}"
    run(out, f"{command} {parts}")
    rows = {row["measure"]: row for row in numbers(out, f"sessions_{Path(model).stem}")["rows"]}
    assert rows["read amplification, decoding"]["value"] == 1
    rival = rows["25%, memory for 25%: IMPRESS-like"]
    n_whole, _, n_run = rival["note"].split(", ")[-1].split()[:3]
    assert 0 < int(n_run) and int(n_whole) <= int(n_run), "the rival was never asked"
    assert all(row["value"] > 0 for row in rows.values())


def test_what_reads_while_a_question_is_read_is_drawn(out) -> None:
    text = run(out, f"plot_prefetch.py --tokens 1200 --layers 2 --png {out}/prefetch.png")
    assert "score pages" in text and (out / "prefetch.png").stat().st_size > 1000


def test_the_model_is_measured_and_its_log_drawn(out) -> None:
    text = run(out, "reference_model.py --task passkey --length 512 --prompts 1")
    assert "| passkey |" in text
    log = FOLDER.parent / "docs" / "training-log.jsonl"
    run(out, f"plot_training.py {log} --png {out}/training.png")
    assert (out / "training.png").stat().st_size > 1000
