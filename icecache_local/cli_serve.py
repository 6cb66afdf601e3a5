"""The commands that open ports: ui and serve."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from . import embedded
from .cli_options import cache_config, example, options
from .conversation import open_model
from .gguf_info import read_model_info
from .planner import largest_n_ctx

LOCAL = "127.0.0.1"
MOST_N_CTX = 65536  # tokens of context if none is chosen
host_option = click.option(
    "--host", default=LOCAL, show_default=True, help="Address to listen on; 0.0.0.0 is everyone."
)


def _warn_if_open(host: str, what: str) -> None:
    if host not in (LOCAL, "localhost", "::1"):
        click.echo(f"Everyone who can reach this machine can use {what}.", err=True)


@click.command(epilog=example("icecache-local ui --models ~/models"))
@options("model")
@click.option(
    "--models", "folders", multiple=True, metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with more GGUF files to choose from; may be repeated.",
)  # fmt: skip
@click.option(
    "--chats", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Folder in which chats are kept; by default your data folder.",
)  # fmt: skip
@options("library", "library_size", "n_ctx", "budget")
@host_option
@click.option("--port", type=click.IntRange(1, 65535), help="By default the first free from 7860.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def ui(
    model: str | None,
    folders: tuple[Path, ...],
    chats: Path | None,
    library: str | None,
    library_size: float,
    n_ctx: int | None,
    budget: int,
    host: str,
    port: int | None,
    no_browser: bool,
) -> None:
    """Open a page in the browser to chat with documents."""
    from icecache_local_ui import launch

    cache_config(budget, None, None)
    _warn_if_open(host, "this page and read its chats")
    launch(
        model=model,
        folders=list(folders),
        chats=chats,
        library=library and Path(library),
        library_bytes=int(library_size * 2**30),
        n_ctx=n_ctx,
        budget=budget,
        host=host,
        port=port,
        open_browser=not no_browser,
        on_ready=lambda address: click.echo(f"Open {address} (Ctrl-C ends it)."),
    )


@click.command(epilog=example("icecache-local serve --model model.gguf --n-ctx 65536"))
@options("model", "n_ctx", "budget", "sink", "window")
@options("ram_limit", "unread", "reuse_layers", "threads", "n_gpu_layers")
@host_option
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--api-key", envvar="ICECACHE_API_KEY", help="What clients must send.")
def serve(
    model: str | None,
    n_ctx: int | None,
    budget: int,
    sink: int | None,
    window: int | None,
    ram_limit: int | None,
    unread: float | None,
    reuse_layers: int,
    threads: int | None,
    n_gpu_layers: int,
    host: str,
    port: int,
    api_key: str | None,
) -> None:
    """Answer OpenAI-compatible clients over HTTP."""
    from .serve import embedded_chat_handler
    from .serve import serve as run

    config = cache_config(budget, sink, window, ram_limit, unread, reuse_layers)
    path = Path(model) if model else embedded.model_path()
    info = read_model_info(path)
    n_ctx = n_ctx or min(info.n_ctx_train or MOST_N_CTX, largest_n_ctx(info, config), MOST_N_CTX)
    llm = open_model(path, n_ctx=n_ctx, cache=config, threads=threads, n_gpu_layers=n_gpu_layers)
    with closing(llm):
        if not model:
            llm.chat_handler = embedded_chat_handler()
        _warn_if_open(host, "this model")
        click.echo(f"http://{host}:{port}/v1 serves {path.stem} with {n_ctx:,} tokens of context.")
        run(llm, path.stem, host, port, api_key)
