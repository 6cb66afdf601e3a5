"""What the benchmarks of whole models share: their options and their JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numba
from models import OUT, qwen3_slice

from icecache_local import CacheConfig

Row = dict[str, object]


@dataclass(frozen=True)
class Setup:
    """What is the same for every context of a run."""

    threads: int
    layers: int
    dtype: str
    budget: int
    rounds: int
    reuse_layers: int

    @property
    def cache(self) -> CacheConfig:
        """Of our context."""
        return CacheConfig(budget=self.budget, reuse_layers=self.reuse_layers)

    @property
    def path(self) -> Path:
        """The model."""
        return qwen3_slice(self.layers, self.dtype)

    def context_options(self, n_ctx: int) -> dict[str, object]:
        """Options of `llama_cpp.Llama` that every context gets."""
        return {
            "model_path": str(self.path),
            "n_ctx": n_ctx,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "verbose": False,
        }


def _lengths(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter("give token counts separated by commas") from None


def command(
    name: str, lengths: str, rounds: int, print_table: Callable[[list[Row]], None]
) -> Callable[[Callable[[int, Setup], Row]], click.Command]:
    """Turn `measure(n_tokens, setup)` into a command that prints rows and writes them as JSON."""

    def decorate(measure: Callable[[int, Setup], Row]) -> click.Command:
        @click.command(help=measure.__doc__)
        @click.option("--lengths", default=lengths, callback=_lengths, help="Token counts.")
        @click.option("--threads", default=os.cpu_count(), help="Threads of every context.")
        @click.option("--layers", default=4, help="Layers of the model.")
        @click.option("--type", "dtype", default="f16", type=click.Choice(["f16", "q8_0"]))
        @click.option("--budget", default=256, help="Resident tokens per KV head.")
        @click.option("--repeats", "rounds", default=rounds, help="Rounds; the median counts.")
        @click.option("--reuse-layers", default=0, help="See CacheConfig.")
        @click.option("--json", "path", default=OUT / f"{name}.json", help="Where to write rows.")
        def run(lengths: list[int], path: str, **settings: object) -> None:
            setup = Setup(**settings)
            numba.set_num_threads(setup.threads)  # selection gets no more threads than stock
            rows = [measure(n, setup) for n in lengths]
            print_table(rows)
            result = {"benchmark": name, "model_shape": "Qwen3-0.6B", **asdict(setup), "rows": rows}
            Path(path).write_text(json.dumps(result, indent=1) + "\n")

        return run

    return decorate
