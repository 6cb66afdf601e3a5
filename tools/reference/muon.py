"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024, arXiv 2502.16982)."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz step
STEPS = 5


def orthogonal(x: Tensor) -> Tensor:
    """Bring the singular values of (n, rows, columns) matrices near 1; rows <= columns."""
    a, b, c = COEFFICIENTS
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Optimizer of matrices; those of one shape are handled together.

    Parameters
    ----------
    params : iterable of Parameter
        Two-dimensional.
    lr, momentum : float
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            same = defaultdict(list)
            for p in group["params"]:
                same[p.shape].append(p)
            for (rows, columns), ps in same.items():
                updates = []
                for p in ps:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["momentum"], group["momentum"]))
                x = torch.stack(updates).bfloat16()
                x = orthogonal(x.mT).mT if rows > columns else orthogonal(x)
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(ps, x, strict=True):
                    p.add_(update.to(p.dtype), alpha=-scale)
