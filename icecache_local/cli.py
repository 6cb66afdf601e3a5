"""The command icecache-local."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from . import __version__, embedded
from .cli_eval import evaluate
from .cli_options import ReadingBar, cache_config, example, options
from .cli_serve import serve, ui
from .cli_sessions import sessions
from .cli_talk import ask, chat
from .errors import IceCacheError
from .gguf_info import read_model_info
from .report import demo_report, demo_summary, plan_report, plan_summary

EXAMPLES = example(
    "icecache-local demo",
    "icecache-local plan --model model.gguf --n-ctx 131072",
    "icecache-local ui",
    'icecache-local ask --model model.gguf --file book.txt "Who is the narrator?"',
    "icecache-local chat --model model.gguf --file book.txt --file notes.md",
)


@click.group(
    epilog=EXAMPLES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="icecache-local")
def cli() -> None:
    """Chat with whole books and code bases on the machine you own.

    The KV cache of the conversation lives in host memory; a few hundred tokens per attention
    head, chosen anew at every step, are resident.
    """


cli.add_command(ask)
cli.add_command(chat)
cli.add_command(ui)
cli.add_command(serve)
cli.add_command(evaluate)
cli.add_command(sessions)


@cli.command(epilog=example("icecache-local demo --budget 64 --seed 7"))
@options("budget", "sink", "window")
@click.option(
    "--tokens", type=click.IntRange(2048, 64000), default=32768, show_default=True,
    help="Least length of the text.",
)  # fmt: skip
@click.option("--questions", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--facts", type=click.IntRange(1, 150), default=16, show_default=True)
@options("seed", "threads", "as_json")
@click.option("--no-stock", is_flag=True, help="Leave out the run with llama.cpp alone.")
def demo(
    budget: int,
    sink: int | None,
    window: int | None,
    tokens: int,
    questions: int,
    facts: int,
    seed: int | None,
    threads: int | None,
    as_json: bool,
    no_stock: bool,
) -> None:
    """Find facts hidden in a long text with the embedded model, beside llama.cpp alone."""
    from .demo import run_demo

    if questions > facts:
        raise click.UsageError(
            f"--questions {questions} is more than --facts {facts}; every fact is asked once."
        )
    result = run_demo(
        config=cache_config(budget, sink, window),
        n_tokens=tokens,
        n_facts=facts,
        n_questions=questions,
        seed=seed,
        threads=threads,
        with_stock=not no_stock,
        say=lambda text: click.echo(text, err=as_json),
        progress=ReadingBar,
    )
    click.echo(json.dumps(demo_summary(result)) if as_json else demo_report(result))


@cli.command(epilog=example("icecache-local plan --model model.gguf --n-ctx 131072"))
@options("model")
@click.option("--n-ctx", type=click.IntRange(min=1), help="By default what it was trained for.")
@click.option(
    "--n-gpu-layers",
    type=click.IntRange(min=-1),
    default=-1,
    help="Layers on GPUs, where llama.cpp finds any; by default all.",
)
@options("budget", "sink", "window", "ram_limit", "reuse_layers", "as_json")
def plan(
    model: str | None,
    n_ctx: int | None,
    n_gpu_layers: int,
    budget: int,
    sink: int | None,
    window: int | None,
    ram_limit: int | None,
    reuse_layers: int,
    as_json: bool,
) -> None:
    """Tell what a model and a context take in memory, without loading anything."""
    from .planner import make_plan
    from .vram import offloaded, plan_vram

    info = read_model_info(model or embedded.model_path())
    if not n_ctx and not info.n_ctx_train:
        raise click.UsageError("The model does not tell its context; pass --n-ctx.")
    config = cache_config(budget, sink, window, ram_limit, reuse_layers=reuse_layers)
    away = offloaded(n_gpu_layers)
    planned = make_plan(info, config, n_ctx or info.n_ctx_train, n_gpu_layers=away)
    vram = plan_vram(info, config, n_gpu_layers)
    if as_json:
        click.echo(json.dumps(plan_summary(info, planned, vram)))
    else:
        click.echo(plan_report(info, config, planned, vram))


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; every error is one sentence on stderr, 2 for usage and 1 otherwise.

    Parameters
    ----------
    args : sequence of str, optional
        The command line without the program's name; by default `sys.argv[1:]`.
    """
    try:
        code = cli.main(args, prog_name="icecache-local", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "icecache-local"
        message, code = f"{error.format_message()} See {where} --help.", 2
    except click.ClickException as error:
        message, code = error.format_message(), 1
    except IceCacheError as error:
        message, code = str(error), 1
    except (click.Abort, KeyboardInterrupt):
        message, code = "Stopped.", 1
    else:
        sys.exit(code if isinstance(code, int) else 0)
    click.echo(f"icecache-local: {message}", err=True)
    sys.exit(code)
