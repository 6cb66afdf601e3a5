"""Everything that is to be shown on a GPU, all sides in one run.

Run `python benchmarks/gpu.py` where llama-cpp-python was built for the GPU. Models have random
4-bit weights in the exact shape of real ones, but only some of their layers (and as much of the
output matrix); figures of the full model are extrapolated in proportion, and called so.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import llama_cpp
import numpy as np
from decode import ms_per_token
from fill import fill_ice, fill_stock
from models import OUT, SHAPES, model_slice
from prefill import seconds_of

from icecache_local import CacheConfig, IceLlama, ggml

N_DECODE = 32  # tokens of one timing
N_WARM = 8
N_BATCH = 512
SIDES = ("ours", "full KV on the GPU", "KV in host memory")
Row = dict[str, object]


@contextmanager
def opened(side: str, path: Path, n_ctx: int, cache: CacheConfig) -> Iterator[llama_cpp.Llama]:
    """One side's context, all layers on the GPU; closed at the end, as VRAM is scarce."""
    options = {"model_path": str(path), "n_ctx": n_ctx, "n_batch": N_BATCH, "verbose": False}
    options["n_gpu_layers"] = -1
    if side == "ours":
        llm = IceLlama(cache=cache, **options)
    else:
        on_gpu = side == "full KV on the GPU"
        llm = llama_cpp.Llama(flash_attn=True, n_ubatch=N_BATCH, offload_kqv=on_gpu, **options)
    with closing(llm):
        yield llm


def logits_of(llm: llama_cpp.Llama) -> np.ndarray:
    """Log-probabilities after the latest token, float64 [vocab]."""
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    x = np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def exactness(path: Path, n_tokens: int, cache: CacheConfig) -> Row:
    """Mean KL divergence from stock while a prompt is read, and in decoding with everything."""
    rng = np.random.default_rng(0)
    everything = CacheConfig(budget=n_tokens + 2 * N_DECODE, stream_limit=cache.stream_limit)
    traces: dict[str, list[np.ndarray]] = {}
    prompt: list[int] = []
    followed: list[int] = []
    for side in ("full KV on the GPU", "ours"):
        with opened(side, path, n_tokens + 2 * N_DECODE, cache) as llm:
            prompt = prompt or rng.integers(0, llm.n_vocab(), n_tokens).tolist()
            rows = []
            for first in range(0, n_tokens, N_BATCH):
                llm.eval(prompt[first : first + N_BATCH])
                rows.append(logits_of(llm))
            traces[f"read, {side}"] = rows
        with opened(side, path, n_tokens + 2 * N_DECODE, everything) as llm:
            llm.eval(prompt)
            if side == "ours":
                llm._kv.spill()
            rows = [logits_of(llm)]
            for i in range(N_DECODE):
                if side == "full KV on the GPU":
                    followed.append(int(rows[-1].argmax()))
                llm.eval(followed[i : i + 1])
                rows.append(logits_of(llm))
            traces[f"decoded, {side}"] = rows
    row: Row = {"n_tokens": n_tokens}
    for what in ("read", "decoded"):
        p, q = (np.array(traces[f"{what}, {side}"]) for side in ("full KV on the GPU", "ours"))
        row[f"{what}_kld"] = float((np.exp(p) * (p - q)).sum(axis=1).mean())
        row[f"{what}_same_top"] = float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    return row


def decoding(side: str, path: Path, n_tokens: int, shape: str, cache: CacheConfig) -> Row:
    """Ms per token of one side after `n_tokens` random ones; ours also by stage."""
    rng, spec = np.random.default_rng(0), SHAPES[shape].spec
    n_layers = 0
    with opened(side, path, n_tokens + N_WARM + 6 * N_DECODE, cache) as llm:
        if side == "ours":
            fill_ice(llm, n_tokens, rng)
        else:
            n_layers = int(llm.metadata[f"{spec.arch}.block_count"])
            fill_stock(llm, n_tokens, n_layers, spec.n_kv_heads * spec.head_dim, rng)
        ms_per_token(llm, N_WARM, rng)
        ms = statistics.median(ms_per_token(llm, N_DECODE, rng) for _ in range(5))
        row: Row = {"n_tokens": n_tokens, "side": side, "ms": ms}
        if side == "ours":
            stats, kv = llm.cache_stats, llm._kv
            row |= {
                "device": type(next(iter(kv.devices.values()))).__name__,
                "stage_ms": stats.stage_ms,
                "kv_vram_bytes": stats.device_bytes,
                "hit_rate": stats.hit_rate,
            }
    return row


def reading(side: str, path: Path, n_tokens: int, cache: CacheConfig) -> Row:
    """Prompt tokens per second of one side."""
    with opened(side, path, n_tokens + 1, cache) as llm:
        tokens = np.random.default_rng(0).integers(0, llm.n_vocab(), n_tokens + 1).tolist()
        seconds_of(llm, tokens[: min(n_tokens, 2 * N_BATCH + 512)])  # compile, and warm up
        return {"n_tokens": n_tokens, "side": side, "tps": n_tokens / seconds_of(llm, tokens)}


def measure(shape: str, layers: int, lengths: list[int], prompt: int, exact: int) -> Row:
    """All measures of one model's shape."""
    path, cache = model_slice(shape, layers, "q4_0"), CacheConfig()
    decode = [decoding(side, path, n, shape, cache) for n in lengths for side in SIDES]
    return {
        "shape": shape,
        "layers": layers,
        "of_layers": SHAPES[shape].n_layers,
        "stream_limit": cache.stream_limit,
        "exactness": exactness(path, exact, cache),
        "decode": decode,
        "prefill": [reading(side, path, prompt, cache) for side in SIDES],
    }


def report(result: Row) -> str:
    """Write the measures of one shape as lines of text, each with its target."""
    scale = result["of_layers"] / result["layers"]
    exact, decode = result["exactness"], result["decode"]
    times = {(row["side"], row["n_tokens"]): row["ms"] for row in decode}
    speeds = {row["side"]: row["tps"] for row in result["prefill"]}
    ours = [row for row in decode if row["side"] == "ours"]
    short, long = ours[0]["n_tokens"], ours[-1]["n_tokens"]
    full, host = SIDES[1:]
    ms = ours[-1]["ms"]
    cells = ours[-1]["kv_vram_bytes"] * scale / 2**20
    stages = ours[-1]["stage_ms"]
    own = sum(stages.values())
    read_n, prompt_n = exact["n_tokens"], result["prefill"][0]["n_tokens"]
    rows = [
        (f"KLD while {read_n} tokens are read", f"{exact['read_kld']:.2e}", "< 1e-3"),
        ("KLD in decoding, budget >= all", f"{exact['decoded_kld']:.2e}", "< 1e-3"),
        ("same greedy tokens", f"{exact['decoded_same_top']:.1%}", "all"),
        (f"VRAM for cells at {long}, MiB (extrapolated)", f"{cells:.0f}", "<= 200"),
        (f"decode at {long} against {short}", f"{ms / ours[0]['ms']:.2f}x", "<= 1.15"),
        ("decode against KV in host memory", f"{times[host, long] / ms:.2f}x", ">= 10x"),
        ("decode against full KV on the GPU", f"{times[full, long] / ms:.2f}x", ">= 1x"),
        (f"read {prompt_n} against full KV", f"{speeds['ours'] / speeds[full]:.2f}x", ">= 0.7x"),
        ("read against KV in host memory", f"{speeds['ours'] / speeds[host]:.2f}x", ">= 10x"),
        ("our stages in a decode step", f"{own / (ms - own):.0%}", "<= 35%"),
    ]
    lines = [
        f"{result['shape']}: {result['layers']} of {result['of_layers']} layers, "
        f"{ours[-1]['device']}; ms per token times {scale:g} are extrapolated to all layers",
        *(f"  {name:<48}{value:>12}   target {target}" for name, value, target in rows),
    ]
    for (side, n), x in times.items():
        lines.append(f"  decode at {n}, {side:<32}{x:9.3f} ms{x * scale:9.2f} ms extrapolated")
    for name, x in stages.items():
        per_layer = 1000 * x / result["layers"]
        lines.append(f"  {name:<12}{per_layer:9.1f} us per layer of a step")
    return "\n".join(lines)


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


@click.command(help=__doc__)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", default=4, help="Layers of each model.")
@click.option("--lengths", default="4096,131072", callback=_numbers, help="For decoding.")
@click.option("--prompt", default=32768, help="Tokens of the prompt that is timed.")
@click.option("--exact", default=16384, help="Tokens of the prompt whose logits are compared.")
@click.option("--json", "out", default=OUT / "gpu.json", help="Where to write the numbers.")
def main(
    shapes: tuple[str, ...], layers: int, lengths: list[int], prompt: int, exact: int, out: str
) -> None:
    """Measure, print and write."""
    found = ggml.gpus()
    if not found:
        raise click.ClickException(
            "llama.cpp sees no GPU: install llama-cpp-python built for yours (for CUDA, "
            'CMAKE_ARGS="-DGGML_CUDA=ON" pip install --force-reinstall --no-binary :all: '
            "llama-cpp-python==0.3.36), then reinstall icecache-local."
        )
    names = [f"{gpu.name} ({gpu.description})" for gpu in found]
    click.echo(f"{', '.join(names)}; {time.strftime('%Y-%m-%d')}")
    results = []
    for shape in shapes or ("llama-3.1-8b", "qwen3-4b"):
        results.append(measure(shape, layers, lengths, prompt, exact))
        click.echo(report(results[-1]))
    Path(out).write_text(json.dumps({"gpus": names, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
