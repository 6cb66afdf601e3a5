"""What the reference model can do: llama.cpp alone, full KV cache, greedy, fresh prompts.

Usage: python benchmarks/reference_model.py [--model FILE] [--task NAMES] [--length NUMBERS]
[--prompts N] [--seed N]

Prints a Markdown table of mean scores in percent, tasks by lengths. Tasks are those of
`icecache-local eval`, their prompts plain; "variable-tracking-2" has two hops instead of four.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # works without installing the package
from icecache_local import embedded  # noqa: E402
from icecache_local.conversation import default_threads  # noqa: E402
from icecache_local.demo import open_stock  # noqa: E402
from icecache_local.evaluation.prompting import Renderer  # noqa: E402
from icecache_local.evaluation.tasks import TASK_NAMES, Request, Task, make_tasks  # noqa: E402
from icecache_local.evaluation.tasks.haystack import Prose  # noqa: E402
from icecache_local.evaluation.tasks.variable_tracking import VariableTracking  # noqa: E402

TWO_HOPS = "variable-tracking-2"


def task_of(name: str, prose: Prose) -> Task:
    """Make a task by name."""
    return VariableTracking(2) if name == TWO_HOPS else make_tasks([name], prose)[0]


def score(llm, task: Task, length: int, index: int, seed: int) -> float:
    """Score of one prompt, the room for its answer included in `length`."""
    renderer = Renderer(llm, chat=False)
    rng = Random(f"{seed}/{task.name}/{length}/{index}")
    sample = task.sample(Request(index, rng, length - task.max_tokens, None, renderer.count))
    llm.reset()
    out = []
    for token in llm.generate(renderer.prompt(sample).tokens, temp=0.0):
        out.append(token)
        answer = llm.detokenize(out).decode("utf-8", "replace")
        done = task.more_helps and sample.score(answer) == 1.0
        if done or len(out) == task.max_tokens or any(stop in answer for stop in task.stop):
            break
    return sample.score(answer)


def table(
    model: Path, tasks: list[str], lengths: list[int], n: int, seed: int, say: Callable[[str], None]
) -> str:
    """Markdown table of mean scores in percent."""
    prose = Prose.of_python()
    rows = [f"| task | {' | '.join(f'{length:,}' for length in lengths)} |"]
    rows.append("| --- " * (1 + len(lengths)) + "|")
    means: dict[tuple[str, int], float] = {}
    for length in lengths:
        llm = open_stock(model, length, default_threads())
        for name in tasks:
            task = task_of(name, prose)
            scores = [score(llm, task, length, i, seed) for i in range(n)]
            means[name, length] = 100 * sum(scores) / n
            say(f"{name} {length}: {means[name, length]:.1f}")
        llm.close()
    for name in tasks:
        cells = " | ".join(f"{means[name, length]:.1f}" for length in lengths)
        rows.append(f"| {name} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=embedded.model_path())
    parser.add_argument("--task", default=",".join([*TASK_NAMES, TWO_HOPS]))
    parser.add_argument("--length", default="2048,8192")
    parser.add_argument("--prompts", type=int, default=100, help="for each task and length")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    lengths = [int(length) for length in args.length.split(",")]
    print(
        table(
            args.model, args.task.split(","), lengths, args.prompts, args.seed,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
