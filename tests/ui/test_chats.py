"""Chats survive a restart, an export, and files that are none."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from icecache_local_ui.chats import NEW, ChatFileError, ChatStore, Turn, file_name
from icecache_local_ui.passages import Look, Passage

from icecache_local.conversation import Document


@pytest.fixture
def store(tmp_path) -> ChatStore:
    return ChatStore(tmp_path / "data")


def filled(store: ChatStore):
    """A chat with a document, two turns and a look."""
    chat = store.new()
    key = store.add_document(Document("book.txt", "It was a dark night.\n"))
    chat.documents = [key]
    look = Look(key, [0.0, 1.0], [Passage(0, 20, 0.5)])
    chat.turns = [Turn("What was it?", "Dark.", [look]), Turn("Really?", "Yes.")]
    chat.system, chat.sampling.top_k = "Be brief.", 7
    store.save(chat)
    return chat


def test_chats_are_there_after_a_restart(store) -> None:
    chat = filled(store)
    (again,) = ChatStore(store.folder).chats()
    assert again == chat


def test_a_deleted_chat_does_not_come_back_with_its_answer(store) -> None:
    chat = store.new()
    store.delete(chat.id)
    chat.turns = [Turn("How?", "Late.")]
    store.save(chat)
    assert chat not in store.chats() and not list((store.folder / "chats").iterdir())


def test_files_of_others_in_the_folder_are_left_alone(store) -> None:
    path = store.folder / "chats" / "other.json"
    path.write_text("{}")
    assert ChatStore(store.folder).chats() == []
    assert path.exists()


def test_export_and_import_give_an_equal_chat_elsewhere(store, tmp_path) -> None:
    chat = filled(store)
    path = tmp_path / file_name(chat)
    path.write_text(store.export(chat))
    other = ChatStore(tmp_path / "other")
    imported = other.import_chat(path)
    assert imported.id != chat.id
    ignored = {"id": "", "used": 0}
    assert asdict(imported) | ignored == asdict(chat) | ignored
    assert other.document(imported.documents[0]) == store.document(chat.documents[0])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "x"}', "\x00"])
def test_other_files_are_refused(store, tmp_path, content) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ChatFileError, match="choose a file that Export made"):
        store.import_chat(path)


def test_a_new_chat_keeps_documents_and_settings(store) -> None:
    chat = filled(store)
    new = store.new(like=chat)
    assert (new.documents, new.system, new.sampling) == (chat.documents, "Be brief.", chat.sampling)
    assert new.turns == [] and new.title == NEW
    assert store.new(like=chat) is new  # one empty chat is enough


def test_a_conversation_holds_the_turns_before(store) -> None:
    chat = filled(store)
    messages = store.conversation(chat, 1, is_embedded=False).messages("Really?")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"].endswith("dark night.\n\nBe brief.\n\nWhat was it?")
