"""Options that several commands share."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from types import FrameType

import click
from tqdm import tqdm

from .config import CacheConfig
from .errors import ConfigError

BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"

COMPILERS = {"numba", "llvmlite"}


def example(*lines: str) -> str:
    """Lay out command lines for the end of a help text."""
    title = "Example" if len(lines) == 1 else "Examples"
    return "\n  ".join([f"\b\n{title}:", *lines])


class Interrupts:
    """Remember Ctrl-C while the `with` block runs.

    It raises KeyboardInterrupt as usual, except while a kernel is being compiled or loaded:
    numba's destructors and LLVM's callbacks would print it and go on. `check`, called often
    enough, makes up for it.
    """

    def __init__(self) -> None:
        self.pending = False

    def __enter__(self) -> Interrupts:
        """Take over SIGINT."""
        self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGINT back."""
        signal.signal(signal.SIGINT, self._before)

    def _remember(self, _: int, frame: FrameType | None) -> None:
        self.pending = True
        while frame is not None:
            if frame.f_globals.get("__name__", "").partition(".")[0] in COMPILERS:
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed since `pending` was last cleared."""
        if self.pending:
            raise KeyboardInterrupt


class ReadingBar:
    """A progress bar on stderr for each prompt that takes longer than one step to read."""

    def __init__(self, label: str = "Reading") -> None:
        self._label = label
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read."""
        if self._bar is None and done < total:
            self._bar = tqdm(
                total=total, desc=self._label, unit=" tokens", bar_format=BAR, leave=False,
                disable=None,
            )  # fmt: skip
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Size(click.ParamType):
    """A number of bytes, with or without K, M, G or T for powers of 1,024."""

    name = "size"

    def convert(self, value: object, param: object, ctx: object) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", str(value).strip(), re.I)
        if match is None:
            self.fail(f"{value!r} is not a size; write 8G or 500M.", param, ctx)
        exponent = " KMGT".index(match[2].upper() or " ")
        return int(float(match[1]) * 1024**exponent)


SHARED = {
    "model": click.option(
        "--model", metavar="GGUF", help="Model file; the embedded model if left out."
    ),
    "file": click.option(
        "--file", "files", multiple=True, metavar="F", help="Text to read; may be repeated."
    ),
    "n_ctx": click.option(
        "--n-ctx",
        type=click.IntRange(min=1),
        help="Tokens you may fill; by default as many as the text needs, and room to answer.",
    ),
    "budget": click.option(
        "--budget", default=256, show_default=True, help="Resident tokens per KV head."
    ),
    "sink": click.option("--sink", type=int, help="First tokens that always stay resident."),
    "window": click.option("--window", type=int, help="Latest tokens that always stay."),
    "ram_limit": click.option(
        "--ram-limit",
        type=Size(),
        metavar="SIZE",
        help="Most memory for K and V, such as 4G; the rest lies on the disk.",
    ),
    "unread": click.option(
        "--unread",
        type=click.FloatRange(0, 0.5),
        help="With --ram-limit, what an answer may do without rather than read it from the disk, "
        "as a share of a head's attention; 0 reads everything.  [default: 0.01]",
    ),
    "reuse_layers": click.option(
        "--reuse-layers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Layers behind one that searches which keep the tokens it found: faster, but measure "
        "first what your model makes of it.",
    ),
    "threads": click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads; by default all cores."
    ),
    "n_gpu_layers": click.option(
        "--n-gpu-layers",
        type=click.IntRange(min=-1),
        default=0,
        show_default=True,
        help="Layers on GPUs that llama.cpp was built for; -1 for all.",
    ),
    "seed": click.option("--seed", type=click.IntRange(0, 2**32 - 2), help="Random by default."),
    "temperature": click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        help="0 is greedy; by default 0 for the embedded model, 0.7 for others.",
    ),
    "max_tokens": click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        help="Longest answer.",
    ),
    "session": click.option(
        "--session",
        metavar="NAME",
        help="Keep the conversation under this name, and go on with it the next time.",
    ),
    "library": click.option(
        "--library",
        metavar="DIR",
        help="Keep what has been read here, for every chat with the same model.",
    ),
    "library_size": click.option(
        "--library-size",
        type=click.FloatRange(min=0, min_open=True),
        default=20.0,
        show_default=True,
        help="GiB the library may take; the least useful texts go first.",
    ),
    "as_json": click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else."
    ),
}


def options(*names: str) -> Callable:
    """Decorate a command with some of the options of `SHARED`, in this order."""

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            command = SHARED[name](command)
        return command

    return decorate


def cache_config(
    budget: int,
    sink: int | None,
    window: int | None,
    ram_limit: int | None = None,
    unread: float | None = None,
    reuse_layers: int = 0,
) -> CacheConfig:
    """Check the cache options; what is wrong with them is a usage error."""
    try:
        return CacheConfig(
            budget=budget,
            sink=sink,
            window=window,
            ram_limit=ram_limit,
            unread=unread,
            reuse_layers=reuse_layers,
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
