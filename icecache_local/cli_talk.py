"""The commands that answer questions: ask and chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_begin import TalkOptions, begin
from .cli_options import Interrupts, ReadingBar, example, options
from .conversation import choose_n_ctx, count_tokens, open_model
from .errors import ContextFullError
from .gguf_info import read_model_info
from .sessions.saved_chat import Keeper
from .support import refuse_partial

if TYPE_CHECKING:
    from .llama import IceLlama

CHAT_ROOM = 8192  # tokens a chat may still take when --n-ctx is not given
TALK = ("model", "file", "n_ctx", "budget", "sink", "window", "ram_limit", "unread")
TALK += ("reuse_layers", "threads", "n_gpu_layers", "seed", "temperature", "max_tokens")
TALK += ("session", "library", "library_size", "as_json")


@click.command(
    epilog=example('icecache-local ask --model model.gguf --file book.txt "Who is the narrator?"')
)
@options(*TALK)
@click.argument("question")
def ask(question: str, **given: object) -> None:
    """Answer one QUESTION about the files; Ctrl-C stops the answer."""
    if not question.strip():
        raise click.UsageError("The question is empty; put it in quotes behind the options.")
    chosen = TalkOptions(**given)
    with open_talk(chosen, question, chosen.max_tokens) as talk:
        answer, stopped = talk.turn(question)
    if stopped and not answer:
        raise click.ClickException("Stopped while reading; nothing was answered.")


@click.command(
    epilog=example("icecache-local chat --model model.gguf --file book.txt --n-ctx 65536")
)
@options(*TALK)
def chat(**given: object) -> None:
    """Talk about the files; Ctrl-C stops an answer, Ctrl-D or /exit leaves.

    The files are read once, with the first question. With --json every line of standard input
    is a question, and every answer is one line of JSON.
    """
    chosen = TalkOptions(**given)
    with open_talk(chosen, "", CHAT_ROOM + chosen.max_tokens) as talk:
        interrupts = 0
        while interrupts < 2:
            try:
                question = _next_question(chosen.as_json)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts < 2:
                    click.echo("\nCtrl-C again, Ctrl-D or /exit leaves.", err=True)
                continue
            if question is None:
                break
            if question:
                try:
                    interrupts = int(talk.turn(question)[1])
                except ContextFullError as error:
                    click.echo(f"icecache-local: {error}", err=True)


def _next_question(as_json: bool) -> str | None:
    """Ask for a line of input; None at its end or when the user wants to leave."""
    interactive = sys.stdin.isatty() and not as_json
    try:
        if interactive:
            import readline  # noqa: F401  (gives input() history and editing)
        line = input("> " if interactive else "").strip()
    except EOFError:
        if interactive:
            click.echo()  # the shell's prompt starts on a line of its own
        return None
    return None if line == "/exit" else line


@contextmanager
def open_talk(chosen: TalkOptions, question: str, room: int) -> Iterator[Talk]:
    """Check every option and file, then load the model; it is closed at the end.

    Parameters
    ----------
    chosen : TalkOptions
    question : str
        The first question, if it is known.
    room : int
        Tokens to keep free behind documents and first question.

    Yields
    ------
    Talk
    """
    from .sessions.library import Library
    from .sessions.reading import read

    begun = begin(chosen)
    info = read_model_info(begun.model)
    if begun.folder or chosen.library:
        refuse_partial(info)
    library = chosen.library and Library(Path(chosen.library), int(chosen.library_size * 2**30))
    conversation = begun.conversation
    if begun.stored:
        n_prompt = begun.stored.n_tokens + count_tokens(begun.model, question)
    else:
        n_prompt = count_tokens(begun.model, conversation.text + question)
    n_ctx = choose_n_ctx(info, n_prompt, room, chosen.n_ctx)
    if begun.stored and not chosen.n_ctx:
        n_ctx = max(n_ctx, begun.stored.settings.n_ctx)
    bar, interrupts = ReadingBar(), Interrupts()
    keeper = Keeper(
        conversation,
        None if conversation.is_embedded else begun.model,
        warn=lambda sentence: click.echo(f"icecache-local: {sentence}", err=True),
    )

    def progress(done: int, total: int) -> None:
        interrupts.check()
        bar(done, total)
        keeper.reading(done, total)

    llm = open_model(
        begun.model,
        n_ctx=n_ctx,
        cache=begun.cache,
        threads=chosen.threads,
        n_gpu_layers=chosen.n_gpu_layers,
        seed=chosen.seed,
        progress=progress,
        session=begun.folder if begun.stored else None,
    )
    with closing(llm), interrupts:
        if begun.folder:
            if not begun.stored:
                llm.start_session(begun.folder)
            keeper.llm = llm
        if library and not begun.stored and conversation.documents:
            try:
                names = ", ".join(document.name for document in conversation.documents)
                read(llm, conversation.shared_tokens(llm), library, keeper.warn, names)
            except KeyboardInterrupt:
                bar.close()
                raise
        yield Talk(llm, keeper, chosen, bar, interrupts)
        keeper.save(compact=True)


class Talk:
    """A loaded model and what has been said to it.

    Parameters
    ----------
    llm : IceLlama
    keeper : Keeper
        Has the conversation, and its session if there is one.
    chosen : TalkOptions
    bar : ReadingBar
        The progress bar that `llm` reports to.
    interrupts : Interrupts
        Active as long as this object is used.
    """

    def __init__(
        self,
        llm: IceLlama,
        keeper: Keeper,
        chosen: TalkOptions,
        bar: ReadingBar,
        interrupts: Interrupts,
    ) -> None:
        self._llm = llm
        self._keeper = keeper
        self._chosen = chosen
        self._bar = bar
        self._interrupts = interrupts

    def turn(self, question: str) -> tuple[str, bool]:
        """Answer a question: streamed to stdout, or as one line of JSON; Ctrl-C ends it early.

        Parameters
        ----------
        question : str

        Returns
        -------
        answer : str
        stopped : bool
            Whether Ctrl-C ended it.
        """
        pieces: list[str] = []
        stopped = False
        chosen = self._chosen
        self._interrupts.pending = False
        try:
            for piece in self._keeper.conversation.ask(
                self._llm, question, chosen.max_tokens, chosen.temperature
            ):
                shown = piece if pieces else piece.lstrip()
                if shown:
                    pieces.append(shown)
                    if not chosen.as_json:
                        click.echo(shown, nl=False)
                self._interrupts.check()
        except KeyboardInterrupt:
            stopped = True
        finally:
            self._bar.close()
        answer = "".join(pieces).strip()
        if answer:
            self._keeper.conversation.add(question, answer)
        if chosen.as_json:
            click.echo(json.dumps(self._result(question, answer, stopped)))
        elif pieces:
            click.echo()
        if stopped:
            click.echo("(stopped)", err=True)
        self._keeper.save()
        return answer, stopped

    def _result(self, question: str, answer: str, stopped: bool) -> dict[str, object]:
        """Answer and statistics for JSON."""
        return {
            "question": question,
            "answer": answer,
            "stopped": stopped,
            "model": Path(self._llm.model_path).name,
            "n_ctx": self._llm.n_ctx(),
            "cache": asdict(self._llm.cache_config),
            "stats": self._llm.cache_stats.as_dict(),
        }
