"""The command line: what it prints, where, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from tiny_models import TinySpec

from icecache_local import __version__, cli_talk, embedded
from icecache_local.cli import main
from icecache_local.conversation import Conversation, Document, choose_n_ctx, count_tokens
from icecache_local.demo import build_text, draw_facts
from icecache_local.errors import ContextFullError
from icecache_local.gguf_info import read_model_info

FACTS = draw_facts(Random(0), 6)
PYTHON = "import sys; from icecache_local.cli import main; main(sys.argv[1:])"


class Result(NamedTuple):
    """Outcome of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd, monkeypatch) -> Run:
    """Run a command line in this process."""

    def run(*args: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            main(args)
        out, err = capfd.readouterr()
        return Result(exit_.value.code, out, err)

    return run


@pytest.fixture(scope="session")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of about 3,000 tokens with facts in it: more than the cells hold."""
    path = tmp_path_factory.mktemp("documents") / "facts.txt"
    path.write_text(build_text(Random(0), FACTS, 1400))
    return path


def assert_one_sentence(result: Result, code: int, *words: str) -> None:
    """Check that a command failed as promised, with `words` in its only line."""
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("icecache-local: ") and result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def test_version_and_help(run):
    assert run("--version").out.strip().endswith(__version__)
    for command in ([], ["demo"], ["ask"], ["chat"], ["plan"], ["eval"]):
        result = run(*command, "--help")
        assert result.code == 0 and "Example" in result.out and "icecache-local" in result.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["Missing command"]),
        (["aks"], ["No such command"]),
        (["ask", "--fiel", "x", "q"], ["No such option", "ask --help"]),
        (["ask"], ["QUESTION"]),
        (["ask", " "], ["empty"]),
        (["ask", "--n-ctx", "many", "q"], ["--n-ctx"]),
        (["ask", "--temperature", "-1", "q"], ["--temperature"]),
        (["chat", "--budget", "20", "--sink", "16", "--window", "8"], ["budget is 20", "need 25"]),
        (["demo", "--questions", "9", "--facts", "8"], ["--questions 9", "--facts 8"]),
        (["plan", "--n-ctx", "0"], ["--n-ctx"]),
    ],
)
def test_usage_errors_are_one_sentence(run, args, words):
    assert_one_sentence(run(*args), 2, *words)


def test_file_errors_are_one_sentence(run, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "data.bin").write_bytes(b"\x00\x01\x02")
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    for name, word in {
        "none.txt": "does not exist",
        "empty.txt": "is empty",
        "data.bin": "binary",
        "latin.txt": "not UTF-8",
        ".": "is a directory",
    }.items():
        result = run("ask", "--file", str(tmp_path / name), "question")
        assert_one_sentence(result, 1, word)


def test_model_errors_are_one_sentence(run, tmp_path):
    (tmp_path / "text.gguf").write_text("text")
    whole = embedded.model_path().read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    for name, word in {
        "none.gguf": "does not exist",
        "text.gguf": "not a GGUF",
        "cut.gguf": "truncated",
        ".": "is a directory",
    }.items():
        for command in (["ask", "q"], ["chat"], ["plan"]):
            assert_one_sentence(run(*command, "--model", str(tmp_path / name)), 1, word)


def test_too_long_a_text_says_how_many_tokens_it_has(run, document):
    n_tokens = count_tokens(embedded.model_path(), document.read_text() + "question")
    result = run("ask", "--file", str(document), "--n-ctx", "1000", "question")
    assert_one_sentence(result, 1, "--n-ctx is 1000", "raise it to")
    assert int(result.err.split()[4]) == n_tokens


def test_too_little_memory_says_how_much_would_fit(run):
    result = run("ask", "--n-ctx", str(10**10), "question")
    assert_one_sentence(result, 1, "lower n_ctx to")


def test_ask_streams_the_answer_alone(run, document):
    fact = FACTS[3]
    result = run("ask", "--file", str(document), embedded.question(fact.name))
    assert result == Result(0, f"{fact.code}\n", "")


def test_ask_reads_several_files(run, tmp_path):
    files = []
    for i, fact in enumerate(FACTS[:2]):
        path = tmp_path / f"{i}.txt"
        path.write_text(f"Something else.\n\n{embedded.statement(fact.name, fact.code)}\n")
        files += ["--file", str(path)]
    for fact in FACTS[:2]:
        assert run("ask", *files, embedded.question(fact.name)).out == f"{fact.code}\n"


def test_ask_as_json_prints_answer_and_statistics(run, document):
    fact = FACTS[0]
    args = ["--json", "--budget", "128", "--sink", "16", "--file", str(document)]
    result = run("ask", *args, embedded.question(fact.name))
    data = json.loads(result.out)
    assert (result.code, data["answer"], data["stopped"]) == (0, fact.code, False)
    assert (data["cache"]["budget"], data["cache"]["sink"]) == (128, 16)
    assert data["stats"]["resident_tokens"] == 128 < data["stats"]["n_tokens"] < data["n_ctx"]


def test_chat_reads_the_document_once(run, document):
    questions = [embedded.question(fact.name) for fact in FACTS[:4]]
    result = run("chat", "--json", "--file", str(document), stdin="\n".join(questions) + "\n")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0
    assert [answer["answer"] for answer in answers] == [fact.code for fact in FACTS[:4]]
    read = [answer["stats"]["prefill_tokens"] for answer in answers]
    assert read[0] > 1000
    assert read[-1] - read[0] < 3 * 40


def test_chat_ends_at_exit_and_skips_empty_lines(run):
    result = run("chat", "--json", stdin="\n  \n/exit\nnot asked\n")
    assert (result.code, result.out) == (0, "")


def test_chat_goes_on_when_the_context_is_full(run, monkeypatch):
    def full(*_: object) -> None:
        raise ContextFullError("No room.")

    monkeypatch.setattr(Conversation, "ask", full)
    result = run("chat", stdin="first\nsecond\n")
    assert (result.code, result.err.count("No room.")) == (0, 2)


def interrupted(pieces: list[str]) -> Callable:
    """Make a `Conversation.ask` that is interrupted after some pieces."""

    def ask(*_: object):
        yield from pieces
        raise KeyboardInterrupt

    return ask


def test_ctrl_c_stops_the_answer(run, monkeypatch):
    monkeypatch.setattr(Conversation, "ask", interrupted([" half an", " answer"]))
    assert run("ask", "question") == Result(0, "half an answer\n", "(stopped)\n")


def test_ctrl_c_that_got_lost_in_a_callback_stops_the_answer(run, monkeypatch):
    def ask(*_: object):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        yield "one "
        yield "two"

    monkeypatch.setattr(Conversation, "ask", ask)
    assert run("ask", "question") == Result(0, "one \n", "(stopped)\n")


def test_ctrl_c_while_reading_is_told(run, monkeypatch):
    monkeypatch.setattr(Conversation, "ask", interrupted([]))
    result = run("ask", "question")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("icecache-local: Stopped while reading")


def test_ctrl_c_in_chat_returns_to_the_prompt(run, monkeypatch):
    monkeypatch.setattr(Conversation, "ask", interrupted(["half"]))
    result = run("chat", stdin="first\nsecond\n")
    assert (result.code, result.out) == (0, "half\nhalf\n")


def test_second_ctrl_c_leaves_the_chat(run, monkeypatch):
    asked = []

    def interrupt(as_json: bool) -> str:
        asked.append(as_json)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_talk, "_next_question", interrupt)
    result = run("chat")
    assert (result.code, len(asked)) == (0, 2)
    assert "Ctrl-C again" in result.err


INTERRUPTED = """
import os, signal, threading
from icecache_local import cli_options

show = cli_options.ReadingBar.__call__
timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))

def interrupt(bar, done, total):
    if not timer.ident:
        timer.start()  # soon, while llama.cpp computes
    show(bar, done, total)

cli_options.ReadingBar.__call__ = interrupt
"""


@pytest.fixture(scope="session")
def long_document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that takes long enough to read for an interrupt in between."""
    path = tmp_path_factory.mktemp("documents") / "long.txt"
    path.write_text(build_text(Random(0), FACTS, 7000))
    return path


def interrupt_reading(*args: str, stdin: str = "") -> Result:
    """Run a command in a process of its own that gets SIGINT while it reads a prompt."""
    command = [sys.executable, "-c", INTERRUPTED + PYTHON, *args]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout, done.stderr)


def test_a_real_interrupt_while_reading_ends_in_a_sentence(long_document):
    result = interrupt_reading("ask", "--file", str(long_document), "What happened?")
    assert (result.code, result.out) == (1, "")
    assert "Stopped while reading" in result.err and "Traceback" not in result.err


def test_chat_answers_after_a_real_interrupt_while_reading(long_document):
    fact = FACTS[2]
    stdin = f"{embedded.question(fact.name)}\n" * 2
    result = interrupt_reading("chat", "--file", str(long_document), stdin=stdin)
    assert result == Result(0, f"{fact.code}\n", "(stopped)\n")


def test_other_models_get_chat_messages(run, tiny_model, document):
    path = tiny_model(TinySpec())
    args = ["--model", str(path), "--file", str(document), "--max-tokens", "5", "--seed", "1"]
    result = run("ask", "--json", *args, "question")
    data = json.loads(result.out)
    assert result.code == 0
    assert data["model"] == path.name
    assert data["stats"]["decode_tokens"] <= 5
    assert data["stats"]["prefill_tokens"] > 3000


def test_seed_repeats_the_answer(run, tiny_model):
    args = ["ask", "--json", "--model", str(tiny_model(TinySpec())), "--max-tokens", "8"]
    first, again, other = (
        json.loads(run(*args, "--seed", seed, "question").out)["answer"] for seed in "112"
    )
    assert first == again != other


def test_prompts_only_grow_at_their_end():
    documents = [Document("a.txt", "Some  text\nhere. "), Document("b.md", "More.")]
    plain = Conversation(documents, is_embedded=True)
    first = plain.prompt("Why?")
    plain.add("Why?", "543121")
    assert first == "Some text here. More. Q: Why? A:"
    assert plain.prompt("And?") == first + " 543121. Q: And? A:"
    chat = Conversation(documents, is_embedded=False)
    (message,) = chat.messages("Why?")
    assert message["content"].startswith("# a.txt\n\nSome  text\nhere.\n\n# b.md\n\nMore.\n\n")
    chat.add("Why?", " Because. ")
    assert chat.messages("And?") == [
        message,
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "And?"},
    ]


def test_context_is_as_large_as_needed_and_trained_for():
    info = read_model_info(embedded.model_path())
    assert choose_n_ctx(info, 10_000, 1024, None) == 11_264 + 1024
    assert choose_n_ctx(info, 65_000, 10_000, None) == info.n_ctx_train
    assert choose_n_ctx(info, 10_000, 1024, 10_500) == 10_500
    with pytest.raises(ContextFullError, match="trained for 65536: pass less text, or --n-ctx"):
        choose_n_ctx(info, 70_000, 1024, None)


def test_plan_tells_what_a_model_takes(run):
    result = run("plan", "--n-ctx", "32768", "--budget", "64")
    assert result.code == 0 and result.err == ""
    for word in ("weights", "cells", "host tier", "index", "compute buffer", "full KV", "fits"):
        assert word in result.out
    data = json.loads(run("plan", "--n-ctx", "32768", "--json").out)
    parts = ("weights", "cells", "host", "index", "compute", "program")
    assert data["total"] == sum(data[part] for part in parts)
    assert data["fits"] and data["max_n_ctx"] >= 32768
    assert data["full_kv"] == 32768 * 3072


def test_plan_names_the_largest_context_that_fits(run, monkeypatch):
    import psutil

    memory = SimpleNamespace(available=400 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    largest = json.loads(run("plan", "--json").out)["max_n_ctx"]
    assert 0 < largest < 65536
    assert f"the largest --n-ctx is {largest}" in run("plan").out
    memory.available = 1
    assert "too little" in run("plan").out


def test_commands_do_not_import_what_they_do_not_need():
    code = PYTHON.replace("main(", "\ntry: main(", 1) + (
        "\nfinally: print([m for m in ('llama_cpp', 'numba') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, "plan", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert output.stdout.splitlines()[-1] == "[]", output.stderr
