"""What the page does: one method per event, state in the engine and the chat store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import gradio as gr

from icecache_local import CacheConfig, embedded
from icecache_local.conversation import Conversation, Document
from icecache_local.errors import IceCacheError
from icecache_local.gguf_info import read_model_info
from icecache_local.hidden_facts import build_text, draw_facts
from icecache_local.planner import largest_n_ctx, make_plan

from . import render
from .chats import Chat, ChatStore, Sampling, Turn, file_name
from .engine import DEFAULT_N_CTX, Engine
from .events import Done, Event, Meters, Reading, Text, Warned
from .readers import read_document

EMBEDDED = "embedded"
REFRESH = 0.05  # seconds between two updates of a streaming answer
SAMPLE_FACTS, SAMPLE_WORDS = 12, 13500  # some 30,000 tokens
OUT_OF_MEMORY = (
    "The memory of this machine is used up: close other programs, or load the model with a "
    "shorter context."
)
Updates = dict[str, Any]


class Page:
    """Handlers of the page's events; all return updates by the name of a component.

    Parameters
    ----------
    engine : Engine
    store : ChatStore
    folders : list of Path
        Where to look for GGUF files.
    """

    def __init__(self, engine: Engine, store: ChatStore, folders: list[Path]) -> None:
        self.engine = engine
        self.store = store
        self.folders = folders
        self._counts: dict[tuple[Path, str], int] = {}
        self._meters: Meters | None = None

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
            "meters": render.meters(self._meters),
            **self._look(chat, answer),
        }

    def settings(self, chat: Chat) -> Updates:
        """System prompt and sampling of a chat."""
        return {"system": chat.system, **asdict(chat.sampling)}

    def _label(self, key: str) -> str:
        return f"{self.store.document(key).name} · {self._count(key):,} tokens"

    def _count(self, key: str) -> int:
        path = self.engine.info.path if self.engine.info else Path()
        if (path, key) not in self._counts:
            read = Conversation([self.store.document(key)], self.engine.is_embedded).text
            (self._counts[path, key],) = self.engine.count([read])
        return self._counts[path, key]

    def _context(self, chat: Chat) -> str:
        talk = sum(self.engine.count([chat.system, *(m["content"] for m in chat.messages())]))
        documents = sum(map(self._count, chat.documents))
        return render.context_meter(documents, talk, self.engine.n_ctx)

    def _look(self, chat: Chat, answer: int) -> Updates:
        texts = {key: self.store.document(key) for key in chat.documents}
        documents = {key: (document.name, document.text) for key, document in texts.items()}
        looks = chat.turns[answer].looks if chat.turns else []
        return {
            "look": render.look_list(looks, documents, bool(chat.turns and chat.turns[-1].answer)),
            "viewer": render.viewer(looks, documents),
        }

    # -- chats ---------------------------------------------------------------------------------

    def open(self, wanted: str | None) -> Updates:
        """Show a chat: the browser's last one when the page is loaded."""
        return {
            **self.refresh(wanted),
            **idle(),
            "cancel": gr.update(visible=False),
            "notice": "",
        }

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

    def delete_chat(self, key: str) -> Updates:
        """Forget a chat and show the one used before."""
        self.store.delete(key)
        chats = self.store.chats()
        return self.open(chats[0].id if chats else None)

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
        return self._look(self.store.get(key), _turn_of(self.store.get(key), index))

    def tab(self, key: str) -> Updates:
        """Show the tab with what the last answer looked at, if there is anything."""
        turns = self.store.get(key).turns
        return {"tabs": gr.update(selected="look") if turns and turns[-1].looks else gr.skip()}

    # -- documents -----------------------------------------------------------------------------

    def add_files(self, request: gr.Request, paths: list[str], key: str) -> Iterator[Updates]:
        """Read dropped files into the chat's documents, then let the model read them."""
        chat = self.store.get(key)
        problems, added = [], []
        for path in paths or []:
            try:
                added.append(self.store.add_document(read_document(path)))
            except IceCacheError as error:
                problems.append(str(error))
        yield from self._add(chat, added, problems, request.session_hash)

    def _add(
        self, chat: Chat, added: list[str], problems: list[str], owner: str
    ) -> Iterator[Updates]:
        free = self.engine.n_ctx - sum(map(self._count, chat.documents))
        for key in added:
            size = self._count(key)
            if key in chat.documents:
                continue
            if size >= free:
                problems.append(
                    f"{self.store.document(key).name} has {size:,} tokens, but only "
                    f"{max(0, free):,} of {self.engine.n_ctx:,} are free: load the model with a "
                    f"longer context, or remove a document."
                )
                continue
            chat.documents.append(key)
            free -= size
        self.store.save(chat)
        message = render.notice(" ".join(problems))
        yield {**self.view(chat), "notice": message, "files": None}
        yield from self._read(chat, owner, message)

    def _read(self, chat: Chat, owner: str, message: str) -> Iterator[Updates]:
        """Let the model read the documents of a chat."""
        if not chat.documents or self.engine.info is None:
            return
        conversation = self.store.conversation(chat, 0, self.engine.is_embedded)
        yield from self.follow(self.engine.read(owner, conversation), message)

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
                    self._meters = event
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        yield {
            "reading": "",
            "cancel": gr.update(visible=False),
            "meters": render.meters(self._meters),
            "notice": message,
        }

    def set_documents(
        self, request: gr.Request, keys: list[str], shown: str, key: str
    ) -> Iterator[Updates]:
        """Remove documents from the chat, or add some that are known.

        The event comes for what the page shows by itself too, and it may have waited while a
        file was dropped: what counts is how `keys` differ from the documents then `shown`.
        """
        chat, before = self.store.get(key), shown.split()
        removed = set(before) - set(keys)
        added = [k for k in keys if k not in before]
        if not removed and not added:
            yield {"documents": gr.skip()}
            return
        chat.documents = [k for k in chat.documents if k not in removed]
        yield from self._add(chat, added, [], request.session_hash)

    def sample(self, request: gr.Request, key: str) -> Iterator[Updates]:
        """Add a long text with hidden facts, and propose a question."""
        facts = draw_facts(Random(1), SAMPLE_FACTS)
        text = build_text(Random(1), facts, SAMPLE_WORDS)
        lines = text.replace(". ", ".\n").replace(" The secret code", "\nThe secret code")
        document = Document("sample.txt", lines + "\n")
        names = ", ".join(fact.name for fact in facts[1:5])
        hint = f"{len(facts)} secret codes are hidden in this text, also those of {names}."
        chat, added = self.store.get(key), [self.store.add_document(document)]
        yield {"box": embedded.question(facts[0].name)}
        for updates in self._add(chat, added, [], request.session_hash):
            if updates.get("notice") == "":
                updates["notice"] = render.notice(hint, "info")
            yield updates

    # -- asking --------------------------------------------------------------------------------

    def stop(self, request: gr.Request) -> None:
        """End what this tab has the model do."""
        self.engine.stop(request.session_hash)

    def begin(self, question: str, key: str) -> Updates:
        """Show the question at once, and that it waits if another one is being answered."""
        waiting = "Another answer is being written; yours comes next." if self.engine.busy else ""
        messages = self.store.get(key).messages()
        if question.strip():
            messages.append({"role": "user", "content": question})
        return {
            "pending": question,
            "box": gr.update(value="", submit_btn=False, stop_btn=True),
            "chatbot": messages,
            "notice": render.notice(waiting, "info"),
        }

    def ask(
        self, request: gr.Request, question: str, key: str, *settings: Any
    ) -> Iterator[Updates]:
        """Answer a new question."""
        chat = self.store.get(key)
        yield from self._answer(chat, len(chat.turns), question, "", settings, request.session_hash)

    def again(self, request: gr.Request, key: str, *settings: Any) -> Iterator[Updates]:
        """Answer the last question anew."""
        chat = self.store.get(key)
        question = chat.turns[-1].question if chat.turns else ""
        yield from self._answer(
            chat, len(chat.turns) - 1, question, "", settings, request.session_hash
        )

    def more(self, request: gr.Request, key: str, *settings: Any) -> Iterator[Updates]:
        """Continue the last answer."""
        chat = self.store.get(key)
        turn = chat.turns[-1] if chat.turns else Turn("")
        yield from self._answer(
            chat,
            len(chat.turns) - 1,
            turn.question,
            turn.answer,
            settings,
            request.session_hash,
        )

    def edit(
        self, request: gr.Request, event: gr.EditData, key: str, *settings: Any
    ) -> Iterator[Updates]:
        """Ask an earlier question in other words; what came after it is dropped."""
        chat = self.store.get(key)
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        yield from self._answer(
            chat, _turn_of(chat, index), str(event.value), "", settings, request.session_hash
        )

    def _answer(
        self, chat: Chat, index: int, question: str, partial: str, settings: tuple, owner: str
    ) -> Iterator[Updates]:
        if not question.strip() or index < 0:
            yield idle()
            return
        chat.system, chat.sampling = settings[0], Sampling(*settings[1:])
        turn, kept, message = Turn(question.strip(), partial), chat.turns[index:], ""
        chat.turns[index:] = [turn]
        yield {**busy(), "chatbot": chat.messages(), "notice": ""}
        try:
            yield from self._stream(chat, turn, index, owner)
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        finally:
            if not turn.answer:  # nothing was said: what was there stays, the question comes back
                chat.turns[index:] = kept
            self.store.save(chat)
        updates = {**self.view(chat), **idle(), "notice": message}
        if not turn.answer and not kept:
            updates["box"] = gr.update(value=question, submit_btn=True, stop_btn=False)
        yield updates

    def _stream(self, chat: Chat, turn: Turn, index: int, owner: str) -> Iterator[Updates]:
        conversation = self.store.conversation(chat, index, self.engine.is_embedded)
        documents = [(key, self.store.document(key).text) for key in chat.documents]
        sampling = asdict(chat.sampling)
        sampling["seed"] = None if sampling["seed"] < 0 else sampling["seed"]
        events = self.engine.answer(
            owner, conversation, turn.question, turn.answer, sampling, documents
        )
        shown = 0.0
        for event in events:
            if self.store.is_deleted(chat):
                events.close()
                return
            self._take(turn, event)
            if isinstance(event, (Reading, Text)) and time.monotonic() - shown > REFRESH:
                shown = time.monotonic()
                # All of it each time: the tab may have come back from another chat.
                reading = render.reading_bar(event) if isinstance(event, Reading) else ""
                yield {**busy(), "reading": reading, "chatbot": chat.messages()}

    def _take(self, turn: Turn, event: Event) -> None:
        if isinstance(event, Text):
            turn.answer = event.text
        elif isinstance(event, Meters):
            self._meters = event
        elif isinstance(event, Done):
            turn.answer, turn.looks = event.text, event.looks

    # -- model ---------------------------------------------------------------------------------

    def models(self) -> list[tuple[str, str]]:
        """GGUF files to choose from, by name; second parts and projectors left out."""
        found = [("Embedded model", EMBEDDED)]
        for folder in self.folders:
            for path in sorted(folder.rglob("*.gguf")):
                is_part = "-of-" in path.stem and "-00001-of-" not in path.stem
                if not is_part and "mmproj" not in path.name:
                    found.append((str(path.relative_to(folder)), str(path)))
        return found

    def plan(self, model: str, n_ctx: float, budget: float) -> Updates:
        """Tell what a model would take."""
        try:
            info, config = read_model_info(model_path(model)), CacheConfig(budget=int(budget))
            return {"plan": render.plan_table(info, make_plan(info, config, int(n_ctx or 1)))}
        except IceCacheError as error:
            return {"plan": render.notice(str(error))}

    def propose(self, model: str, budget: float) -> Updates:
        """Propose a context for a model that was just chosen, and plan it."""
        try:
            n_ctx = proposed_n_ctx(model_path(model), CacheConfig(budget=int(budget)))
        except IceCacheError as error:
            return {"plan": render.notice(str(error))}
        return {"n_ctx": n_ctx, **self.plan(model, n_ctx, budget)}

    def load(self, model: str, n_ctx: float, budget: float) -> Iterator[Updates]:
        """Load a model; `refresh` shows what it means for the chat."""
        yield {"notice": render.notice("Loading the model …", "info")}
        message = ""
        try:
            config = CacheConfig(budget=int(budget))
            self.engine.load(model_path(model), int(n_ctx or 0), config)
            self._meters = None
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        yield {"notice": message, **self.plan(model, n_ctx, budget)}

    @property
    def temperature(self) -> float:
        """Default temperature: the embedded model retrieves, there is nothing to vary."""
        return 0.0 if self.engine.is_embedded else Sampling.temperature


def idle() -> Updates:
    """Let the user ask."""
    return {"box": gr.update(submit_btn=True, stop_btn=False), "reading": ""}


def busy() -> Updates:
    """Let the user stop what was asked."""
    wait = {name: gr.update(interactive=False) for name in ("again", "more")}
    return {"box": gr.update(submit_btn=False, stop_btn=True), **wait}


def model_path(model: str) -> Path:
    """File of a choice of the model list, or of a path that was typed in."""
    model = (model or EMBEDDED).strip()
    return embedded.model_path() if model == EMBEDDED else Path(model).expanduser()


def proposed_n_ctx(path: Path, config: CacheConfig) -> int:
    """Context for a model: what it was trained for, what fits, and not absurdly much."""
    info = read_model_info(path)
    return min(info.n_ctx_train or DEFAULT_N_CTX, largest_n_ctx(info, config), DEFAULT_N_CTX)


def _turn_of(chat: Chat, message: int) -> int:
    """Turn to which a message of the chat belongs."""
    roles = [m["role"] for m in chat.messages()[: message + 1]]
    return max(0, roles.count("user") - 1)


def sentence(error: Exception) -> str:
    """Tell the user what went wrong."""
    return str(error) if isinstance(error, IceCacheError) else OUT_OF_MEMORY
