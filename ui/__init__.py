"""The page behind `icecache-local ui`: chat with documents in the browser.

Gradio is imported only when the page is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["launch"]


def launch(
    *,
    model: str | None = None,
    folders: list[Path] | None = None,
    chats: Path | None = None,
    library: Path | None = None,
    library_bytes: int = 20 << 30,
    n_ctx: int | None = None,
    budget: int = 256,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    block: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> str:
    """Load a model and open the page.

    Parameters
    ----------
    model : str, optional
        GGUF file; by default the embedded model.
    folders : list of Path, optional
        Where to look for other GGUF files.
    chats : Path, optional
        Folder in which chats are kept; by default the user's data folder.
    library : Path, optional
        Folder in which documents are kept as they were read, so that they are read once.
    library_bytes : int
        Most bytes of it; the least useful documents go first.
    n_ctx : int, optional
        Tokens of the context; by default what the model was trained for and memory allows.
    budget : int
        Resident tokens per KV head.
    host, port
        Where to listen; by default on this machine only, on the first free port from 7860 on.
    open_browser : bool
    block : bool
        Serve until interrupted.
    on_ready : callable, optional
        Called with the address once the page is there.

    Returns
    -------
    str
        Address of the page.

    Raises
    ------
    IceCacheError
        The model cannot be loaded; the sentence says what to do.
    """
    from icecache_local import CacheConfig
    from icecache_local.folders import data_folder
    from icecache_local.sessions.library import Library

    from .app import build
    from .chats import ChatStore
    from .engine import Engine
    from .models import model_path, proposed_n_ctx
    from .page import Page
    from .theme import look_and_feel

    path, config = model_path(model or ""), CacheConfig(budget=budget)
    engine = Engine(library and Library(library, library_bytes))
    engine.load(path, n_ctx or proposed_n_ctx(path, config), config)
    engine.warm_up()
    page = Page(engine, ChatStore(chats or data_folder()))
    blocks = build(page, folders or [])
    blocks.queue(max_size=64)
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        **look_and_feel(),
    )
    if on_ready is not None:
        on_ready(address)
    if block:
        blocks.block_thread()
    return address
