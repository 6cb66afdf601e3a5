"""--session and the sessions command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from random import Random

import pytest

from icecache_local import embedded
from icecache_local.cli import main
from icecache_local.demo import build_text, draw_facts
from icecache_local.sessions import saved_chat
from icecache_local.sessions.saved_chat import Keeper

FACTS = draw_facts(Random(0), 4)
QUESTIONS = [embedded.question(fact.name) for fact in FACTS]


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run a command line in this process, with a data folder of its own; (code, out, err)."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            main(args)
        return exit_.value.code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Path:
    """A text of about 3,000 tokens with facts in it."""
    path = tmp_path_factory.mktemp("documents") / "facts.txt"
    path.write_text(build_text(Random(0), FACTS, 1400))
    return path


def prefilled(out: str) -> int:
    """Tokens that were read for an answer in JSON."""
    return json.loads(out)["stats"]["prefill_tokens"]


def test_a_text_is_read_once(run, document) -> None:
    code, out, _ = run("ask", "--session", "s", "--file", str(document), "--json", QUESTIONS[0])
    assert code == 0 and FACTS[0].code in out and prefilled(out) > 1000
    code, out, _ = run("ask", "--session", "s", "--json", QUESTIONS[1])
    assert code == 0 and FACTS[1].code in out and prefilled(out) < 50
    code, out, _ = run("chat", "--session", "s", "--json", stdin="\n".join(QUESTIONS[2:]))
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["answer"] for a in answers] == [fact.code for fact in FACTS[2:]]
    assert answers[-1]["stats"]["prefill_tokens"] < 80
    code, out, _ = run("sessions", "show", "s", "--json")
    shown = json.loads(out)
    assert shown["turns"] == [[q, f.code] for q, f in zip(QUESTIONS, FACTS, strict=True)]
    assert shown["documents"] == ["facts.txt"] and shown["n_tokens"] > 1000


def test_answers_are_those_of_one_chat(run, document) -> None:
    start = ["chat", "--file", str(document), "--temperature", "0", "--max-tokens", "40"]
    questions = ["What is it about?", QUESTIONS[1], "Who?", QUESTIONS[3]]
    _, expected, _ = run(*start, stdin="\n".join(questions))
    found = ""
    for i, question in enumerate(questions):
        given = start if i == 0 else ["chat", *start[3:]]
        _, out, err = run(*given, "--session", "parts", stdin=question)
        assert err == ""
        found += out
    assert found == expected


def test_another_chat_finds_the_text_in_the_library(run, document, tmp_path) -> None:
    library = str(tmp_path / "library")
    start = ["ask", "--library", library, "--json", "--file", str(document)]
    read = [prefilled(run(*start, question)[1]) for question in QUESTIONS[:3]]
    assert read[0] > 1000 and max(read[1:]) < 50
    code, out, err = run(*start, QUESTIONS[3])
    assert code == 0 and json.loads(out)["answer"] == FACTS[3].code and err == ""
    more = tmp_path / "more.txt"
    more.write_text("Something more. " * 20)
    assert 50 < prefilled(run(*start, "--file", str(more), QUESTIONS[0])[1]) < 600
    for damage in (lambda data: b"short", lambda data: bytes(len(data))):
        for path in tmp_path.glob("library/*/pages-*"):
            path.write_bytes(damage(path.read_bytes()))
        code, out, _ = run(*start, QUESTIONS[0])
        assert code == 0 and prefilled(out) > 1000
        assert prefilled(run(*start, QUESTIONS[0])[1]) < 50
    code, out, err = run("chat", "--library", library, "--library-size", "0")
    assert code == 2 and "--library-size" in err


def test_list_show_verify_and_rm(run, document) -> None:
    code, out, err = run("sessions", "list")
    assert code == 0 and out == "" and "--session NAME" in err
    for name in ("one", "two"):
        run("ask", "--session", name, "--file", str(document), QUESTIONS[0])
    code, out, _ = run("sessions", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["two", "one"]
    assert "1 documents, 1 questions" in out and "retr-5m" in out
    code, out, _ = run("sessions", "list", "--json")
    assert [session["name"] for session in json.loads(out)] == ["two", "one"]
    code, out, _ = run("sessions", "show", "one")
    assert f"> {QUESTIONS[0]}\n{FACTS[0].code}" in out and "document facts.txt" in out
    code, out, _ = run("sessions", "verify")
    assert code == 0 and out.count("as they were saved") == 2
    code, out, _ = run("sessions", "rm", "two")
    assert code == 0
    assert run("sessions", "show", "two")[0] == 1


def test_a_long_text_is_saved_while_it_is_read(run, document, tmp_path, monkeypatch) -> None:
    sizes, original = [], Keeper.save

    def save(self: Keeper, compact: bool = False) -> None:
        sizes.append(self.llm.n_tokens)
        if len(sizes) <= 2:
            original(self, compact)
        if len(sizes) == 2:
            raise KeyboardInterrupt  # and, as if it had been killed, nothing is saved any more

    monkeypatch.setattr(saved_chat, "SAVE_EVERY", 1024)
    monkeypatch.setattr(Keeper, "save", save)
    args = ["ask", "--session", "s", "--json", QUESTIONS[1]]
    run(*args, "--file", str(document))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert 1024 <= sizes[0] < sizes[1]
    code, out, _ = run(*args)
    assert code == 0 and json.loads(out)["answer"] == FACTS[1].code
    assert 50 < prefilled(out) < 1500


def test_damage_is_told(run, document, tmp_path) -> None:
    run("ask", "--session", "s", "--file", str(document), QUESTIONS[0])
    folder = tmp_path / "data" / "icecache-local" / "sessions" / "s"
    pages = next(folder.glob("snapshot-*/pages-*"))
    data = bytearray(pages.read_bytes())
    data[1000] ^= 1
    pages.write_bytes(data)
    for args in (
        ["sessions", "verify"],
        ["sessions", "verify", "s"],
        ["ask", "--session", "s", "q"],
    ):
        code, out, err = run(*args)
        assert code == 1 and out == ""
        assert err.count("\n") == 1 and "damaged" in err and "read the text again" in err
    assert run("sessions", "rm", "s")[0] == 0 and not folder.exists()


def test_mistakes_are_one_sentence(run, document, tmp_path) -> None:
    run("ask", "--session", "s", "--file", str(document), QUESTIONS[0])
    other = tmp_path / "other.txt"
    other.write_text("Something else.")
    for args, code, words in (
        (["ask", "--session", "s", "--file", str(other), "q"], 1, "begun with facts.txt"),
        (["ask", "--session", "s", "--sink", "8", "q"], 1, "sink = 32, not 8"),
        (["ask", "--session", "a:b", "q"], 1, "no name for a session"),
        (["ask", "--session", "s", "--n-ctx", "500", "q"], 1, "500"),
        (["sessions", "show", "none"], 1, "no session"),
        (["sessions", "rm", "none"], 1, "no session"),
        (["sessions", "rm"], 2, "Name the sessions"),
        (["sessions", "verify", "none"], 1, "no session"),
    ):
        found, out, err = run(*args)
        assert found == code and out == "" and words in err and err.count("\n") == 1, err


def test_a_session_of_the_api_is_no_conversation(run, open_ice, tmp_path) -> None:
    llm = open_ice(embedded.model_path(), 2048)
    llm.eval(llm.tokenize(b"A few words."))
    llm.save_session(tmp_path / "api")
    code, _, err = run("chat", "--session", str(tmp_path / "api"))
    assert code == 1 and "no conversation" in err
    assert run("sessions", "show", str(tmp_path / "api"))[0] == 0
