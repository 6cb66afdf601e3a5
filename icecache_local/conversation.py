"""Questions and answers over documents: loading, prompts, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import embedded
from .config import CacheConfig
from .errors import ContextFullError
from .gguf_info import ModelInfo
from .prompts import Prompt, chat_prompt, stream, text_prompt
from .texts import collapse, read_text

if TYPE_CHECKING:
    from llama_cpp import Llama

    from .llama import IceLlama

TEMPLATE_TOKENS = 256  # allowance for what a chat template puts around the messages
ROUND_TO = 1024  # tokens


@dataclass(frozen=True)
class Document:
    """A named text."""

    name: str
    text: str


def read_documents(paths: tuple[str, ...]) -> list[Document]:
    """Read text files into documents named after them; see `texts.read_text` for errors."""
    return [Document(Path(path).name, read_text(path)) for path in paths]


def open_model(
    model: Path,
    *,
    n_ctx: int,
    cache: CacheConfig | None,
    threads: int | None = None,
    n_gpu_layers: int = 0,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    attribution: bool = False,
    session: Path | None = None,
) -> IceLlama:
    """Load a model with its cache; the only place where the commands do so.

    Parameters
    ----------
    model : Path
    n_ctx : int
        Tokens the user may fill.
    cache : CacheConfig
    threads : int, optional
        By default all physical cores this process may use.
    n_gpu_layers : int
        Layers on GPUs; -1 for all.
    seed : int, optional
        Of the sampler; random by default.
    progress : callable, optional
        Called with (tokens read, tokens to read) while a prompt is read.
    attribution : bool
        Record which positions each answer attends to.
    session : Path, optional
        Go on where this one was saved.

    Returns
    -------
    IceLlama
    """
    from llama_cpp import LLAMA_DEFAULT_SEED

    from .llama import IceLlama

    threads = threads or default_threads()
    open_ = partial(IceLlama.open_session, session) if session else IceLlama
    return open_(
        model_path=str(model),
        n_ctx=n_ctx,
        cache=cache,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=n_gpu_layers,
        seed=LLAMA_DEFAULT_SEED if seed is None else seed,
        progress=progress,
        attribution=attribution,
        verbose=False,
    )


def default_threads() -> int:
    """Physical cores this process may use; hyper-threads slow matrix products down."""
    import os

    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(usable or 1, psutil.cpu_count(logical=False) or 1))


def count_tokens(model: Path, text: str) -> int:
    """Count the tokens of a text; only the model's vocabulary is loaded.

    Parameters
    ----------
    model : Path
    text : str

    Returns
    -------
    int
    """
    import logging

    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    data = text.encode()
    try:
        vocab = llama_cpp.llama_model_get_vocab(loaded)
        return -llama_cpp.llama_tokenize(vocab, data, len(data), None, 0, True, False)
    finally:
        llama_cpp.llama_model_free(loaded)


def choose_n_ctx(info: ModelInfo, n_prompt: int, room: int, wanted: int | None) -> int:
    """Return the context for a prompt and its answers.

    Parameters
    ----------
    info : ModelInfo
    n_prompt : int
        Tokens of documents and question.
    room : int
        Tokens to keep free for answers and further questions.
    wanted : int or None
        What the user asked for; otherwise as much as needed, rounded up, at most what the
        model was trained for.

    Returns
    -------
    int

    Raises
    ------
    ContextFullError
        If the prompt does not fit; the sentence says how many tokens it has.
    """
    least = n_prompt + TEMPLATE_TOKENS
    needed = -(-(least + room) // ROUND_TO) * ROUND_TO
    n_ctx = wanted or min(needed, info.n_ctx_train or needed)
    if least < n_ctx:
        return n_ctx
    if wanted:
        raise ContextFullError(
            f"The text has {n_prompt} tokens, but --n-ctx is {wanted}: "
            f"raise it to {needed} or pass less text."
        )
    raise ContextFullError(
        f"The text has {n_prompt} tokens, but {info.name} was trained for {info.n_ctx_train}: "
        f"pass less text, or --n-ctx {needed} to go beyond."
    )


class Conversation:
    """Documents, questions and answers, in the order they were read.

    The prompt only ever grows at its end, so that what was read stays in the cache.

    Parameters
    ----------
    documents : list of Document
    is_embedded : bool
        Whether the model is the embedded one, which has its own prompt format; others get
        chat messages, the documents in front of the first question.
    system : str, optional
        Instructions. They stand behind the documents, so that conversations with different
        ones share what was read; the embedded model does without.

    Attributes
    ----------
    turns : list of (question, answer)
    """

    def __init__(self, documents: list[Document], is_embedded: bool, system: str = "") -> None:
        self.documents = documents
        self.is_embedded = is_embedded
        self.system = system.strip()
        if is_embedded:
            self.text = collapse(" ".join(document.text for document in documents))
        else:
            self.text = "".join(f"# {d.name}\n\n{d.text.strip()}\n\n" for d in documents)
        self.turns: list[tuple[str, str]] = []

    def prompt(self, question: str) -> str:
        """Text the embedded model continues with the answer to `question`."""
        turns = "".join(f"{embedded.ask(q)} {a}{embedded.STOP}" for q, a in self.turns)
        return self.text + turns + embedded.ask(question)

    def messages(self, question: str) -> list[dict[str, str]]:
        """Chat messages up to and with `question`."""
        messages = []
        start = self.text + (f"{self.system}\n\n" if self.system else "")
        for asked, answer in [*self.turns, (question, None)]:
            front = "" if messages else start
            messages.append({"role": "user", "content": front + asked})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return messages

    def rendered(self, llm: Llama, question: str, partial: str = "") -> Prompt:
        """Prompt up to and with `question`, in the model's own format.

        Parameters
        ----------
        llm : Llama
        question : str
        partial : str, optional
            The beginning of the answer, to be continued.

        Returns
        -------
        Prompt
        """
        if self.is_embedded:
            prompt = text_prompt(llm, self.prompt(question), [embedded.STOP])
        else:
            prompt = chat_prompt(llm, self.messages(question))
        begun = llm.tokenize(partial.encode(), add_bos=False) if partial else []
        return replace(prompt, tokens=prompt.tokens + begun)

    def shared_tokens(self, llm: Llama) -> list[int]:
        """Tokens of the documents, with which the prompt of every question begins."""
        bare = Conversation(self.documents, self.is_embedded)
        first, second = (bare.rendered(llm, question).tokens for question in ("Who", "7"))
        pairs = enumerate(zip(first, second, strict=False))
        return first[: next((i for i, (a, b) in pairs if a != b), len(first))]

    def ask(
        self, llm: IceLlama, question: str, max_tokens: int, temperature: float | None = None
    ) -> Iterator[str]:
        """Yield the answer piece by piece.

        Parameters
        ----------
        llm : IceLlama
        question : str
        max_tokens : int
        temperature : float, optional
            0 takes the most probable token each time; by default 0 for the embedded model,
            0.7 for others.

        Yields
        ------
        str
        """
        if temperature is None:
            temperature = 0.0 if self.is_embedded else 0.7
        prompt = self.rendered(llm, question)
        yield from stream(llm, prompt, max_tokens=max_tokens, temperature=temperature)

    def add(self, question: str, answer: str) -> None:
        """Keep a turn: later prompts continue after it."""
        self.turns.append((question, answer.strip()))
