"""What the page shows of a chat, and the list of chats; its panels have modules of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from icecache_local.conversation import Conversation
from icecache_local.errors import IceCacheError

from . import render
from .chats import Chat, ChatStore, Sampling, file_name
from .engine import Engine
from .events import Event, Meters, Reading, Warned

OUT_OF_MEMORY = (
    "The memory of this machine is used up: close other programs, or load the model with a "
    "shorter context."
)
Updates = dict[str, Any]


class Page:
    """Handlers of the events around chats; all return updates by the name of a component.

    Parameters
    ----------
    engine : Engine
    store : ChatStore

    Attributes
    ----------
    meters : Meters or None
        What the model last reported.
    answering : dict of str to str
        Chats for which an answer is being written, and whose tab asked.
    """

    def __init__(self, engine: Engine, store: ChatStore) -> None:
        self.engine = engine
        self.store = store
        self.meters: Meters | None = None
        self.answering: dict[str, str] = {}
        self._counted: dict[tuple[Path, str], int] = {}

    # -- what is shown -------------------------------------------------------------------------

    def view(self, chat: Chat, answer: int = -1) -> Updates:
        """Everything that depends on the chat; `answer` is the turn whose look is shown."""
        return {
            "chat_id": chat.id,
            "chats": gr.update(
                choices=[(c.title, c.id) for c in self.store.chats()], value=chat.id
            ),
            "chatbot": chat.messages(),
            "documents": gr.update(
                choices=[(self._label(key), key) for key in self.store.documents()],
                value=chat.documents,
            ),
            "shown": " ".join(chat.documents),
            "context": self._context(chat),
            "again": gr.update(interactive=bool(chat.turns)),
            "more": gr.update(interactive=bool(chat.turns)),
            "meters": render.meters(self.meters),
            **self.look(chat, answer),
        }

    def settings(self, chat: Chat) -> Updates:
        """System prompt and sampling of a chat."""
        return {"system": chat.system, **asdict(chat.sampling)}

    def _label(self, key: str) -> str:
        return f"{self.store.document(key).name} · {self.count(key):,} tokens"

    def count(self, key: str) -> int:
        """Tokens of a document for the model that is loaded."""
        path = self.engine.info.path if self.engine.info else Path()
        if (path, key) not in self._counted:
            read = Conversation([self.store.document(key)], self.engine.is_embedded).text
            (self._counted[path, key],) = self.engine.count([read])
        return self._counted[path, key]

    def _context(self, chat: Chat) -> str:
        talk = sum(self.engine.count([chat.system, *(m["content"] for m in chat.messages())]))
        documents = sum(map(self.count, chat.documents))
        return render.context_meter(documents, talk, self.engine.n_ctx)

    def look(self, chat: Chat, answer: int) -> Updates:
        """Show what an answer looked at."""
        texts = {key: self.store.document(key) for key in chat.documents}
        documents = {key: (document.name, document.text) for key, document in texts.items()}
        looks = chat.turns[answer].looks if chat.turns else []
        return {
            "look": render.look_list(looks, documents, bool(chat.turns and chat.turns[-1].answer)),
            "viewer": render.viewer(looks, documents),
        }

    @property
    def temperature(self) -> float:
        """Default temperature: the embedded model retrieves, there is nothing to vary."""
        return 0.0 if self.engine.is_embedded else Sampling.temperature

    # -- chats ---------------------------------------------------------------------------------

    def show(self, request: gr.Request, wanted: str | None) -> Updates:
        """Show a chat: the browser's last one when the page is loaded."""
        return self.open(wanted, request.session_hash)

    def open(self, wanted: str | None, owner: str = "") -> Updates:
        """Show a chat; it can be stopped if tab `owner` has asked and it is being answered."""
        updates = self.refresh(wanted)
        asked = owner and self.answering.get(updates["chat_id"]) == owner
        state = busy() if asked else idle()
        return {**updates, **state, "cancel": gr.update(visible=False), "notice": ""}

    def refresh(self, key: str | None) -> Updates:
        """Show a chat as the model sees it that is loaded now; what goes on is left alone."""
        chat = self.store.get(key)
        if not chat.turns:
            chat.sampling.temperature = self.temperature
        return {**self.view(chat), **self.settings(chat), **self.head()}

    def head(self) -> Updates:
        """Name of the model."""
        return {"model_name": render.model_line(self.engine.info, self.engine.n_ctx)}

    def new_chat(self, key: str | None) -> Updates:
        """Begin a chat about the same documents."""
        return self.open(self.store.new(like=self.store.get(key)).id)

    def delete_chat(self, request: gr.Request, key: str) -> Updates:
        """Forget a chat and show the one used before."""
        self.store.delete(key)
        chats = self.store.chats()
        return self.open(chats[0].id if chats else None, request.session_hash)

    def export(self, key: str) -> Updates:
        """Hand the chat to the browser."""
        chat = self.store.get(key)
        return {"export_name": file_name(chat), "export_text": self.store.export(chat)}

    def import_chat(self, path: str, key: str) -> Updates:
        """Take over an exported chat."""
        try:
            return self.open(self.store.import_chat(Path(path)).id)
        except IceCacheError as error:
            return {"notice": render.notice(str(error))}

    def show_look(self, event: gr.SelectData, key: str) -> Updates:
        """Show what the chosen answer looked at."""
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return self.look(self.store.get(key), turn_of(self.store.get(key), index))

    def tab(self, key: str) -> Updates:
        """Show the tab with what the last answer looked at, if there is anything."""
        turns = self.store.get(key).turns
        return {"tabs": gr.update(selected="look") if turns and turns[-1].looks else gr.skip()}

    # -- reading ---------------------------------------------------------------------------------

    def follow(self, events: Iterator[Event], message: str) -> Iterator[Updates]:
        """Show how the reading goes on, and at the end `message` or what went wrong."""
        yield {"cancel": gr.update(visible=True)}
        try:
            for event in events:
                if isinstance(event, Reading):
                    yield {"reading": render.reading_bar(event)}
                elif isinstance(event, Warned):
                    message = render.notice(event.text)
                elif isinstance(event, Meters):
                    self.meters = event
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        yield {
            "reading": "",
            "cancel": gr.update(visible=False),
            "meters": render.meters(self.meters),
            "notice": message,
        }


def idle() -> Updates:
    """Let the user ask."""
    return {"box": gr.update(submit_btn=True, stop_btn=False), "reading": ""}


def busy() -> Updates:
    """Let the user stop what was asked."""
    wait = {name: gr.update(interactive=False) for name in ("again", "more")}
    return {"box": gr.update(submit_btn=False, stop_btn=True), **wait}


def sentence(error: Exception) -> str:
    """Tell the user what went wrong."""
    return str(error) if isinstance(error, IceCacheError) else OUT_OF_MEMORY


def turn_of(chat: Chat, message: int) -> int:
    """Turn to which a message of the chat belongs."""
    roles = [m["role"] for m in chat.messages()[: message + 1]]
    return max(0, roles.count("user") - 1)
