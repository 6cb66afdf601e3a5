"""Results of the commands as tables for people and as dicts for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from . import embedded
from .config import CacheConfig
from .gguf_info import ModelInfo
from .planner import N_UBATCH, Plan, format_bytes
from .support import verdict
from .vram import VramPlan

if TYPE_CHECKING:
    from .demo import Demo


def plan_summary(info: ModelInfo, plan: Plan, vram: VramPlan) -> dict[str, object]:
    """Plan and model as a dict; sizes in bytes."""
    return {
        "model": info.name,
        "architecture": info.architecture,
        "n_layers": info.n_layers,
        "n_ctx_train": info.n_ctx_train,
        **asdict(plan),
        "total": plan.total,
        "fits": plan.fits,
        "supported": verdict(info)[0],
        "support": verdict(info)[1],
        "vram": {**asdict(vram), "total": vram.total, "fits": vram.fits} if vram.devices else None,
    }


def plan_report(info: ModelInfo, config: CacheConfig, plan: Plan, vram: VramPlan) -> str:
    """Plan as a table with a verdict below."""
    layers = f"{len(info.cached_layers)} of {info.n_layers} layers"
    heads = sorted({info.kv_heads[i] for i in info.cached_layers})
    shape = f"{'/'.join(map(str, heads))} KV heads of {info.head_dim_k}"
    n_cells = config.n_cells(N_UBATCH, info.n_swa)
    rows = [
        ("weights", plan.weights, ""),
        ("cells", plan.cells, f"{n_cells} tokens, budget {config.budget}"),
        ("host tier", plan.host, f"{plan.n_ctx:,} tokens"),
        *([("on the disk", plan.disk, "at most")] if plan.disk else []),
        ("index", plan.index, ""),
        ("compute buffer", plan.compute, "estimated"),
        ("program", plan.program, "estimated"),
        ("total", plan.total, ""),
        ("full KV instead", plan.full_kv, "what llama.cpp would put on the device"),
    ]
    lines = [f"{info.name} ({info.architecture}): {layers} with {shape}", ""]
    lines += [f"  {name:<16}{format_bytes(n):>10}  {note}".rstrip() for name, n, note in rows]
    supported, sentence = verdict(info)
    lines += ["", sentence, *([_verdict(plan), *plan.notes] if supported else [])]
    lines += _vram_lines(vram) if supported and vram.devices else []
    return "\n".join(lines)


def _vram_lines(vram: VramPlan) -> list[str]:
    """Write a table of what goes to GPUs, and a verdict."""
    rows = [
        ("weights", vram.weights, ""),
        ("cells", vram.cells, ""),
        ("staging", vram.staging, "at most"),
        ("compute buffer", vram.compute, "estimated"),
        ("total", vram.total, f"n_gpu_layers {vram.n_gpu_layers}"),
        ("free", vram.free, "now"),
    ]
    lines = ["", f"On {', '.join(vram.devices)}:", ""]
    lines += [f"  {name:<16}{format_bytes(n):>10}  {note}".rstrip() for name, n, note in rows]
    if vram.fits:
        return [*lines, "", "It fits on the GPU, if the driver takes no more than what is left."]
    return [*lines, "", f"It does not fit on the GPU: n_gpu_layers {vram.most_layers} would."]


def _verdict(plan: Plan) -> str:
    """Tell whether the plan fits, and if not, what would."""
    free = format_bytes(plan.available)
    if plan.total <= plan.available and not plan.fits:
        room = format_bytes(plan.disk_available)
        return f"It does not fit: {room} of disk are free; the largest --n-ctx is {plan.max_n_ctx}."
    if plan.fits:
        return f"It fits: {free} of memory are free, enough for {plan.max_n_ctx:,} tokens."
    if plan.max_n_ctx:
        return f"It does not fit: {free} are free; the largest --n-ctx is {plan.max_n_ctx}."
    return f"It does not fit: {free} are free, too little for this model at any length."


def demo_summary(demo: Demo) -> dict[str, object]:
    """Outcome of the demo as a dict."""
    return {
        "seed": demo.seed,
        "n_tokens": demo.n_tokens,
        "n_facts": demo.n_facts,
        "questions": [embedded.question(fact.name) for fact in demo.asked],
        "expected": [fact.code for fact in demo.asked],
        "cache": asdict(demo.config),
        "threads": demo.threads,
        "icecache": demo.icecache.as_dict(),
        "llama_cpp": demo.stock.as_dict() if demo.stock else None,
        "seconds": demo.seconds,
    }


def demo_report(demo: Demo) -> str:
    """Outcome of the demo as two tables: answers, then speed and memory."""
    from .demo import DECODE_TOKENS

    runs = [run for run in (demo.icecache, demo.stock) if run]
    heads = ["icecache", "llama.cpp"][: len(runs)]
    lines = ["", _row("question", ["expected", *heads])]
    for i, fact in enumerate(demo.asked):
        answers = [run.answers[i] for run in runs]
        lines.append(_row(embedded.question(fact.name), [fact.code, *answers]))
    n = len(demo.asked)
    rows: list[tuple[str, list[str]]] = [
        ("right answers", [f"{run.correct} of {n}" for run in runs]),
        ("reading, tokens/s", [f"{run.prefill_tokens_per_s:,.0f}" for run in runs]),
        (
            f"writing, tokens/s (over {DECODE_TOKENS})",
            [f"{run.decode_tokens_per_s:,.0f}" for run in runs],
        ),
        ("resident tokens per KV head", [f"{run.resident_tokens:,}" for run in runs]),
        ("llama.cpp's cells", [format_bytes(run.device_bytes) for run in runs]),
        ("host tier", [format_bytes(run.host_bytes) for run in runs]),
        ("index", [format_bytes(run.index_bytes) for run in runs]),
    ]
    lines += ["", _row("", ["", *heads])]
    lines += [_row(name, ["", *values]) for name, values in rows]
    lines += ["", f"{demo.seconds:.0f} seconds in all, {demo.threads} threads."]
    return "\n".join(lines)


def _row(name: str, values: list[str]) -> str:
    """One line of a demo table."""
    return (f"{name:<48}" + "".join(f"{value:>11}" for value in values)).rstrip()
