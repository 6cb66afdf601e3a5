"""Saved chats and the library, in the page: what is listed, opened and deleted."""

from __future__ import annotations

import numpy as np
import pytest
from handlers import Request, run
from icecache_local_ui.chats import ChatStore, Turn
from icecache_local_ui.engine import Engine
from icecache_local_ui.events import Meters, Reading
from icecache_local_ui.page import Page
from icecache_local_ui.saved import SavedPanel

from icecache_local import CacheConfig, embedded
from icecache_local.conversation import Conversation, Document
from icecache_local.sessions.describe import all_sessions, session_folder
from icecache_local.sessions.library import Library
from icecache_local.sessions.lock import Lock

N_CTX = 4096
STATEMENT = embedded.statement("Orson Jungle", "543121")
QUESTION = embedded.question("Orson Jungle")
TEXT = "It was a dark night in the old town. " * 150 + STATEMENT + " Nobody slept there. " * 90


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page with the embedded model, its data in a folder of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    engine = Engine(Library(tmp_path / "library", 1 << 30))
    engine.load(embedded.model_path(), N_CTX, CacheConfig(budget=128))
    yield Page(engine, ChatStore(tmp_path / "chats"))
    engine.close()


def begun(page: Page):
    """A chat about one document, with an answer."""
    chat = page.store.new()
    chat.documents = [page.store.add_document(Document("book.txt", TEXT))]
    chat.turns = [Turn(QUESTION, "543121")]
    page.store.save(chat)
    return chat


def reads(page: Page, conversation: Conversation) -> int:
    """Tokens that the model reads for a conversation's documents."""
    events = list(page.engine.read("tab", conversation))
    assert all(isinstance(event, (Reading, Meters)) for event in events)
    return max((event.total for event in events if isinstance(event, Reading)), default=0)


def test_a_chat_is_saved_listed_opened_and_deleted(page) -> None:
    panel, chat = SavedPanel(page), begun(page)
    shown = run(panel.save(Request(), "my book", chat.id))
    assert "Saved as my book" in shown["notice"]
    assert shown["saved"]["value"] == "chat:my book"
    ((label, _),) = [c for c in shown["saved"]["choices"] if c[1].startswith("chat:")]
    assert "tokens" in label and "iB" in label
    page.store.delete(chat.id)
    page.engine.load(embedded.model_path(), N_CTX, CacheConfig(budget=128))  # yesterday's is gone
    opened = run(panel.open("chat:my book"))
    assert opened["chatbot"] == chat.messages()
    again = page.store.get(opened["chat_id"])
    conversation = page.store.conversation(again, 1, True)
    assert reads(page, conversation) == 0, "the book was read again"
    assert "my book" in panel.ask_delete("chat:my book")["saved_question"]
    assert all_sessions() != [], "it was deleted before that was confirmed"
    assert not panel.keep()["saved_sure"]["visible"]
    gone = panel.delete("chat:my book")
    assert all_sessions() == [] and gone["notice"] == ""
    assert run(panel.open("chat:my book"))["notice"].count("There is no session") == 1


def test_another_chat_is_not_overwritten_and_the_same_one_is(page) -> None:
    panel, chat = SavedPanel(page), begun(page)
    run(panel.save(Request(), "book", chat.id))
    chat.turns.append(Turn("What else?", "Nothing."))
    assert "Saved as" in run(panel.save(Request(), "book", chat.id))["notice"]
    other = page.store.new(like=chat)
    other.turns = [Turn("Who slept there?", "Nobody.")]
    page.store.save(other)
    assert "holds another chat" in run(panel.save(Request(), "book", other.id))["notice"]
    assert run(panel.open("chat:book"))["chatbot"] == chat.messages()


def test_opening_a_chat_that_is_there_makes_no_second_one(page) -> None:
    panel, chat = SavedPanel(page), begun(page)
    run(panel.save(Request(), "book", chat.id))
    assert run(panel.open("chat:book"))["chat_id"] == chat.id
    assert len(page.store.chats()) == 1


def test_a_document_is_read_once_and_its_place_in_the_library_told(page) -> None:
    panel, chat = SavedPanel(page), begun(page)
    conversation = page.store.conversation(chat, 0, True)
    assert reads(page, conversation) > 500
    (text,) = [c for c in panel.show()["saved"]["choices"] if c[1].startswith("text:")]
    assert text[0].startswith("book.txt")
    page.engine.load(embedded.model_path(), N_CTX, CacheConfig(budget=128))
    assert reads(page, conversation) == 0
    assert "have to be read again" in panel.ask_delete(text[1])["saved_question"]
    assert not [c for c in panel.delete(text[1])["saved"]["choices"] if c[1] == text[1]]
    assert not list((page.engine.library.path).glob("*-*"))


def test_an_empty_name_stands_for_the_proposed_one(page) -> None:
    chat = begun(page)
    proposed = SavedPanel(page).show(key=chat.id)["saved_name"]["placeholder"]
    shown = run(SavedPanel(page).save(Request(), " ", chat.id))
    assert f"Saved as {proposed}." in shown["notice"]
    assert [path.name for path in all_sessions()] == [proposed]
    assert "value" not in SavedPanel(page).show(key=chat.id)["saved_name"]  # what was typed stays


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "x" * 101])
def test_names_that_lead_elsewhere_are_refused(page, name) -> None:
    chat = begun(page)
    shown = run(SavedPanel(page).save(Request(), name, chat.id))
    assert "is no name" in shown["notice"] and all_sessions() == []


def test_what_another_process_has_open_stays(page) -> None:
    panel, chat = SavedPanel(page), begun(page)
    run(panel.save(Request(), "book", chat.id))
    lock = Lock(session_folder("book"))
    try:
        assert "open" in panel.delete("chat:book")["notice"]
        assert "open" in run(panel.open("chat:book"))["notice"]
    finally:
        lock.release()
    assert len(all_sessions()) == 1
    assert page.engine.info is not None, "no model is left"
    assert np.isfinite(page.engine.count(["a text"])[0])
