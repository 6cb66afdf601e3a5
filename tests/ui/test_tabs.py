"""Which updates reach a tab."""

from __future__ import annotations

import inspect

import gradio as gr
import pytest
from gradio.helpers import special_args
from handlers import Request
from icecache_local_ui.tabs import Tabs


@pytest.fixture
def tabs() -> Tabs:
    return Tabs({name: name for name in ("chat_id", "chatbot", "notice")})


def open_chat(wanted: str):
    return {"chat_id": wanted}


def title(key: str):
    return {"notice": key}


def write(key: str, letters: str):
    for letter in letters:
        yield {"chatbot": letter}


def load(n: int):
    for i in range(n):
        yield {"notice": i}


def test_an_answer_is_seen_where_its_chat_is(tabs) -> None:
    handler = tabs.handler(open_chat)
    answers = {tab: tabs.handler(write)(Request(tab), "a", "xyz") for tab in ("1", "2", "3")}
    handler(Request("1"), "a")
    handler(Request("2"), "a")  # of the third, nothing is known: the server was started anew
    assert [next(answer) for answer in answers.values()] == [{"chatbot": "x"}] * 3
    handler(Request("2"), "b")
    seen = [next(answer) for answer in answers.values()]
    assert seen == [{"chatbot": "y"}, {"notice": gr.skip()}, {"chatbot": "y"}]
    handler(Request("2"), "a")
    assert next(answers["2"]) == {"chatbot": "z"}


def test_what_answers_at_once_is_about_the_chat_that_was_opened_last(tabs) -> None:
    assert tabs.handler(title)(Request(), "a") == {"notice": "a"}
    tabs.handler(open_chat)(Request(), "b")
    assert tabs.handler(title)(Request(), "a") == {"notice": "b"}
    assert tabs.handler(open_chat)(Request(), "a") == {"chat_id": "a"}


def test_what_is_about_no_chat_is_always_seen(tabs) -> None:
    tabs.handler(open_chat)(Request(), "b")
    assert list(tabs.handler(load)(Request(), 2)) == [{"notice": 0}, {"notice": 1}]


def test_every_tab_is_forgotten_when_it_closes(tabs) -> None:
    tabs.handler(open_chat)(Request("1"), "b")
    tabs.forget(Request("1"))
    assert list(tabs.handler(write)(Request("1"), "a", "x")) == [{"chatbot": "x"}]


def test_an_answer_that_nobody_follows_is_closed(tabs) -> None:
    closed = []

    def endless(key: str):
        try:
            while True:
                yield {"chatbot": key}
        finally:
            closed.append(key)

    answer = tabs.handler(endless)(Request(), "a")
    next(answer)
    answer.close()
    assert closed == ["a"]


@pytest.mark.parametrize("method", [open_chat, write])
def test_gradio_hands_over_the_request(tabs, method) -> None:
    handler, request = tabs.handler(method), gr.Request()
    given = ["a", "xyz"][: len(inspect.signature(method).parameters)]
    assert special_args(handler, list(given), request)[0] == [request, *given]


class Page:
    def ask(self, request: gr.Request, question: str, key: str, *settings: float):
        yield {"chatbot": (request.session_hash, question, key, settings)}


def test_a_method_that_asks_for_the_request_gets_it_once(tabs) -> None:
    handler = tabs.handler(Page().ask)
    assert special_args(handler, ["q", "a", 1.0], gr.Request())[0][1:] == ["q", "a", 1.0]
    assert list(handler(Request(), "q", "a", 1.0)) == [{"chatbot": ("tab", "q", "a", (1.0,))}]
