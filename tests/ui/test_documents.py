"""Documents of a chat: what the page's list does to them."""

from __future__ import annotations

import pytest
from handlers import Request, run
from icecache_local_ui.chats import Chat, ChatStore
from icecache_local_ui.documents import DocumentPanel
from icecache_local_ui.engine import Engine
from icecache_local_ui.page import Page

from icecache_local.conversation import Document


@pytest.fixture
def page(tmp_path):
    """A page before a model is loaded."""
    return Page(Engine(), ChatStore(tmp_path))


@pytest.fixture
def chat(page) -> Chat:
    """A chat about two documents."""
    chat = page.store.new()
    chat.documents = [add(page, "a.txt"), add(page, "b.txt")]
    page.store.save(chat)
    return chat


def add(page: Page, name: str) -> str:
    return page.store.add_document(Document(name, f"The text of {name}."))


def choose(page: Page, chat: Chat, keys: list[str], shown: list[str]) -> list[str]:
    """Let the list show `keys` where it showed others before; the chat's documents then."""
    run(DocumentPanel(page).choose(Request(), keys, " ".join(shown), chat.id))
    return page.store.get(chat.id).documents


def test_the_page_tells_what_it_shows(page, chat) -> None:
    view = page.view(chat)
    assert view["shown"].split() == view["documents"]["value"] == chat.documents


def test_documents_are_removed_and_all_of_them_cleared(page, chat) -> None:
    first, second = chat.documents
    assert choose(page, chat, [second], [first, second]) == [second]
    assert choose(page, chat, [], [second]) == []


def test_what_waited_while_a_file_was_dropped_does_not_remove_it(page, chat) -> None:
    first, second = chat.documents
    assert choose(page, chat, [], []) == [first, second]
    assert choose(page, chat, [], [first]) == [second]
    assert choose(page, chat, [first], [first]) == [second]
