"""Draw docs/training.png from a training log of tools/train_reference.py.

Usage: python benchmarks/plot_training.py docs/training-log.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from models import ROOT  # noqa: E402

LOSSES = ("loss", "prose")
NO_TASKS = ("step", "seconds_per_step", *LOSSES)


def series(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """Pick the steps at which `key` was logged, and its values."""
    pairs = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in pairs], [value for _, value in pairs]


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--png", default=ROOT / "docs" / "training.png", help="The picture.")
def main(log: Path, png: str) -> None:
    """Draw the share of right answers of each drill, and the losses, by step."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [row for row in rows if "step" in row]
    starts = [row["start"] for row in rows if "start" in row]
    tasks = sorted({key for line in lines for key in line} - set(NO_TASKS))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    for i, task in enumerate(tasks):
        top.plot(*series(lines, task), label=task, color=plt.colormaps["tab20"](i))
    for name in LOSSES:
        bottom.plot(*series(lines, name), label={"loss": "answers", "prose": "real text"}[name])
    for start in starts[1:]:
        for axes in (top, bottom):
            axes.axvline(start, color="0.8", linewidth=0.8)
    top.set_ylabel("answers with every token right")
    bottom.set_ylabel("loss, nats per token")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(png, dpi=120)


if __name__ == "__main__":
    main()
