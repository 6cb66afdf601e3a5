"""The training loop: steps that depend on the seed and their number alone, so it can resume."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.nn import functional as F

from .batches import FILL, NOISE_FILL, Batch, Writer
from .muon import Muon
from .network import Network

MIX = {
    "codes": 0.07,
    "needle": 0.13,
    "values": 0.18,
    "queries": 0.16,
    "variables": 0.14,
    "count": 0.08,
    "repeat": 0.08,
    "reverse": 0.18,
    "common": 0.02,
    "frequent": 0.02,
    "passkey": 0.01,
    "prose": 0.01,
}
SIZES = (256, 512, 1024, 2048, 4096)  # tokens of a sequence; long ones come later
SIZES_FIRST = (0.45, 0.4, 0.15, 0.0, 0.0)
SIZES_LAST = (0.15, 0.35, 0.25, 0.17, 0.08)
WARM_UP = 50  # steps
DECAY = 0.4  # last share of the steps, in which the learning rate falls to zero
FILLING_WEIGHT = 0.2  # of the loss on the real text
FILLING_SHARE = 0.25  # of its tokens that are predicted
LONG = 32_768  # tokens at which attention logits have their natural scale
MOST_DILUTED = 16  # times that a token of the filling counts


@dataclass(frozen=True)
class Plan:
    """What the training depends on.

    Attributes
    ----------
    steps, seed : int
    tokens : int
        Of each step.
    lr, lr_adam : float
        Peaks for matrices (Muon) and for all else (AdamW).
    mix : dict of str to float
        Share of each drill.
    sizes : dict of int to float
        Shares of sequence lengths in tokens; empty: `SIZES`, at first the short ones.
    diluted : int
        Tokens of a text as which shorter ones are read: each token of the filling counts several
        times in attention. 0: once.
    """

    steps: int
    seed: int = 0
    tokens: int = 4096
    lr: float = 0.02
    lr_adam: float = 3e-3
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    sizes: dict[int, float] = field(default_factory=dict)
    diluted: int = 0

    def rate(self, step: int) -> float:
        """Factor of the learning rates: up, flat, and down to zero."""
        return min(1.0, (step + 1) / WARM_UP, (self.steps - step) / (DECAY * self.steps))

    def draw_dilution(self, rng: Random, size: int) -> float:
        """How often the filling of a text of `size` tokens counts."""
        most = min(MOST_DILUTED, self.diluted / size)
        return most ** rng.random() if most > 1 and rng.random() < 0.75 else 1.0

    def draw_size(self, rng: Random, step: int) -> int:
        """Tokens of each sequence of a step."""
        x = step / self.steps
        shares = [(1 - x) * a + x * b for a, b in zip(SIZES_FIRST, SIZES_LAST, strict=True)]
        sizes = self.sizes or dict(zip(SIZES, shares, strict=True))
        return min(rng.choices(list(sizes), weights=list(sizes.values()))[0], self.tokens)


class Trainer:
    """A network in training.

    Parameters
    ----------
    network : Network
    writer : Writer
    plan : Plan
    """

    def __init__(self, network: Network, writer: Writer, plan: Plan) -> None:
        self.network, self.writer, self.plan = network, writer, plan
        self.step = 0
        named = dict(network.named_parameters())
        self.matrices = {k: p for k, p in named.items() if p.ndim == 2 and k.startswith("blk")}
        self.others = {k: p for k, p in named.items() if k not in self.matrices}
        self.muon = Muon(self.matrices.values(), lr=plan.lr)
        self.adam = torch.optim.AdamW(
            self.others.values(), lr=plan.lr_adam, betas=(0.9, 0.98), weight_decay=0.0
        )

    def advance(self) -> dict[str, list]:
        """Take one step.

        Returns
        -------
        dict
            "loss" and "prose" with their value, and for each task 1 or 0 for each of its answers:
            whether every token of it was the likeliest.
        """
        rng = Random(f"{self.plan.seed}/{self.step}")
        size = self.plan.draw_size(rng, self.step)
        batch = self.writer.batch(rng, self.plan.mix, self.plan.tokens // size, size)
        rate = self.plan.rate(self.step)
        self.muon.param_groups[0]["lr"] = self.plan.lr * rate
        self.adam.param_groups[0]["lr"] = self.plan.lr_adam * rate
        for optimizer in (self.muon, self.adam):
            optimizer.zero_grad(set_to_none=True)
        loss, seen = self._loss(batch, rng)
        loss.backward()
        for optimizer in (self.muon, self.adam):
            optimizer.step()
        self.step += 1
        return seen

    def _loss(self, batch: Batch, rng: Random) -> tuple[torch.Tensor, dict[str, list]]:
        device = self.network.token_embd.weight.device
        tokens = torch.from_numpy(batch.tokens).to(device)
        positions = torch.from_numpy(batch.positions).to(device)
        kinds = batch.answers[:, 1:]
        size = tokens.shape[1]
        # A short text is read as a long one would be: its softmax has fewer to compete.
        counts = [self.plan.draw_dilution(rng, size) for _ in tokens]
        low = [min(1.0, np.log(size * count) / np.log(LONG)) for count in counts]
        scale = torch.tensor([rng.uniform(x, 1.0) for x in low], device=device)
        bias = None
        if self.plan.diluted:
            is_filling = torch.from_numpy(np.isin(batch.answers, (FILL, NOISE_FILL))).to(device)
            bias = torch.tensor(counts, device=device).log()[:, None] * is_filling
        chosen = np.random.default_rng(self.step).random(kinds.shape) < FILLING_SHARE
        answer, filling = kinds >= 0, (kinds == FILL) & chosen
        with torch.autocast(device.type, torch.bfloat16):
            hidden = self.network(tokens, positions, scale, bias)[:, :-1]
            picked = torch.from_numpy(answer | filling).to(device)
            logits = self.network.logits(hidden[picked])
        targets = tokens[:, 1:][picked]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        own = torch.from_numpy(answer[answer | filling]).to(device)
        seen: dict[str, list] = defaultdict(list)
        loss = losses.new_zeros(())
        if own.any():
            loss = loss + losses[own].mean()
            seen["loss"].append(loss.item())
        if not own.all():
            prose = losses[~own].mean()
            loss = loss + FILLING_WEIGHT * prose
            seen["prose"].append(prose.item())
        right = (logits.argmax(-1) == targets)[own].cpu().numpy()
        whole = np.ones(len(batch.tasks), bool)
        np.logical_and.at(whole, kinds[answer], right)
        for i in np.unique(kinds[answer]):
            seen[batch.tasks[i]].append(int(whole[i]))
        return loss, seen

    def save(self, path: Path) -> None:
        """Write weights, optimizers and the step to a NumPy archive."""
        arrays = {f"weight/{k}": p for k, p in (self.matrices | self.others).items()}
        for key, p in self.matrices.items():
            arrays[f"muon/{key}"] = self.muon.state[p]["momentum"]
        for key, p in self.others.items():
            for name in ("exp_avg", "exp_avg_sq"):
                arrays[f"{name}/{key}"] = self.adam.state[p][name]
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(
            unfinished, step=self.step, **{k: x.detach().cpu().numpy() for k, x in arrays.items()}
        )
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises
        ------
        ValueError
            The file is damaged, or of a network of another shape.
        """
        try:
            with np.load(path) as data:
                arrays = {k: torch.from_numpy(data[k]) for k in data.files}
            step = int(arrays["step"])
            with torch.no_grad():
                for key, p in (self.matrices | self.others).items():
                    p.copy_(arrays[f"weight/{key}"])
                for key, p in self.matrices.items():
                    self.muon.state[p]["momentum"] = arrays[f"muon/{key}"].to(p.device)
                for key, p in self.others.items():
                    self.adam.state[p] = {
                        "step": torch.tensor(float(step)),
                        "exp_avg": arrays[f"exp_avg/{key}"].to(p.device),
                        "exp_avg_sq": arrays[f"exp_avg_sq/{key}"].to(p.device),
                    }
        except (KeyError, RuntimeError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} does not fit this network: {error}") from None
        self.step = step


def run(trainer: Trainer, out: Path, log_every: int, save_every: int) -> None:
    """Train to the end of the plan; log lines of JSON, and checkpoints, go to `out`."""
    log, checkpoint = out / "log.jsonl", out / "checkpoint.npz"
    start, first, seen = time.perf_counter(), trainer.step, defaultdict(list)
    _drop_after(log, trainer.step)
    _append(log, {"start": trainer.step, **asdict(trainer.plan)})
    while trainer.step < trainer.plan.steps:
        for key, values in trainer.advance().items():
            seen[key] += values
        if trainer.step % log_every == 0 or trainer.step == trainer.plan.steps:
            seconds = (time.perf_counter() - start) / (trainer.step - first)
            means = {k: round(float(np.mean(v)), 4) for k, v in sorted(seen.items())}
            line = {"step": trainer.step, "seconds_per_step": round(seconds, 3), **means}
            _append(log, line)
            print(" ".join(f"{k} {v}" for k, v in line.items()), flush=True)
            seen.clear()
        if trainer.step % save_every == 0 or trainer.step == trainer.plan.steps:
            trainer.save(checkpoint)


def _drop_after(path: Path, step: int) -> None:
    """Leave out what was logged after the checkpoint: it is trained again."""
    rows = path.read_text().splitlines() if path.exists() else []
    kept = [row for row in rows if json.loads(row).get("step", 0) <= step]
    path.write_text("".join(f"{row}\n" for row in kept))


def _append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
