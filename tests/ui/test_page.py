"""What a tab is shown of a chat."""

from __future__ import annotations

import pytest
from handlers import Request
from icecache_local_ui.answers import AnswerPanel
from icecache_local_ui.chats import ChatStore
from icecache_local_ui.engine import Engine
from icecache_local_ui.events import Done, Text
from icecache_local_ui.page import Page

from icecache_local.errors import IceCacheError


class SlowEngine(Engine):
    """Answers in two parts, without a model."""

    def answer(self, *args):
        """Say something, and more."""
        yield Text("Once")
        yield Text("Once upon")
        yield Done("Once upon a time", False, [])


class BrokenEngine(Engine):
    """Fails at once."""

    def answer(self, *args):
        """Say nothing."""
        raise IceCacheError("No model is loaded.")
        yield


def page_with(engine: Engine, tmp_path) -> Page:
    return Page(engine, ChatStore(tmp_path))


def ask(page: Page, chat, tab: str):
    """A question that tab `tab` asks in a chat, with the settings of the page."""
    settings = page.settings(chat).values()
    return AnswerPanel(page).ask(Request(tab), "What now?", chat.id, *settings)


def can_stop(page: Page, chat, tab: str) -> bool:
    """Whether the chat comes with a button to stop when a tab shows it."""
    box = page.show(Request(tab), chat.id)["box"]
    assert box["submit_btn"] != box["stop_btn"]
    return box["stop_btn"]


def test_a_tab_that_comes_back_to_its_answer_can_stop_it(tmp_path) -> None:
    page = page_with(SlowEngine(), tmp_path)
    chat = page.store.new()
    answer = ask(page, chat, "mine")
    assert not can_stop(page, chat, "mine")
    next(answer)
    other = page.store.new()
    assert can_stop(page, chat, "mine")
    assert not can_stop(page, other, "mine"), "nobody asked there"
    assert not can_stop(page, chat, "another"), "stopping is for the tab that asked"
    last = list(answer)[-1]
    assert not last["box"]["stop_btn"] and not can_stop(page, chat, "mine")
    assert page.store.get(chat.id).turns[-1].answer == "Once upon a time"


@pytest.mark.parametrize("gone", [False, True])
def test_an_answer_that_ends_early_leaves_nothing_to_stop(tmp_path, gone) -> None:
    page = page_with(SlowEngine() if gone else BrokenEngine(), tmp_path)
    chat = page.store.new()
    answer = ask(page, chat, "mine")
    next(answer)
    if gone:
        answer.close()
    else:
        assert "No model" in list(answer)[-1]["notice"]
    assert not page.answering and not can_stop(page, chat, "mine")
