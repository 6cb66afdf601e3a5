"""What must be the same for a stored sequence to be continued: model, rotary settings, LoRA."""

from __future__ import annotations

import inspect
import os
from functools import lru_cache
from pathlib import Path

import llama_cpp
from xxhash import xxh3_128

from ..errors import SessionMismatchError
from ..gguf_header import read_header, read_parts
from ..gguf_info import ModelInfo

ROPE = (
    *("rope_scaling_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor"),
    *("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"),
)
WHOLE_BYTES = 64 << 20  # files up to here are hashed whole
HEAD_BYTES = 16 << 20  # of larger ones the beginning, with all metadata,
SAMPLES, SAMPLE_BYTES = 512, 16 << 10  # and so many blocks at even distances

WHAT = {
    "model": "another model file or quantization",
    "lora": "another LoRA adapter or scale",
    "rope": "other rotary settings",
    "overrides": "other metadata overrides",
    "long_context": "a context on the other side of the length at which the model's rotary "
    "factors change",
}


def fingerprint_of(info: ModelInfo, n_ctx: int, options: dict[str, object]) -> dict[str, object]:
    """Tell one way of running a model from another.

    Parameters
    ----------
    info : ModelInfo
    n_ctx : int
        Tokens the user may fill.
    options : dict
        Those of `llama_cpp.Llama`; what is left out has its default.

    Returns
    -------
    dict
        Plain JSON; `name` and `architecture` are for people only.
    """
    parameters = inspect.signature(llama_cpp.Llama.__init__).parameters

    def option(name: str) -> object:
        return options.get(name, parameters[name].default)

    lora = option("lora_path")
    overrides = option("kv_overrides") or {}
    return {
        "name": info.path.stem,
        "architecture": info.architecture,
        "model": "-".join(_digest(path) for path in _parts(info.path)),
        "lora": [_digest(Path(lora)), float(option("lora_scale"))] if lora else None,
        "rope": [option(name) for name in ROPE],
        "overrides": sorted([str(key), repr(value)] for key, value in overrides.items()),
        "long_context": bool(info.rope_border) and n_ctx > info.rope_border,
    }


def check_fingerprint(stored: dict[str, object], found: dict[str, object], name: str) -> None:
    """Compare two fingerprints.

    Raises
    ------
    SessionMismatchError
        The sentence names the first difference.
    """
    for key, what in WHAT.items():
        if stored.get(key) != found[key]:
            raise SessionMismatchError(
                f"{name} was saved with {what} (model {stored.get('name')}): open it with that, "
                "or read the text again in a new session."
            )


def _parts(path: Path) -> tuple[Path, ...]:
    """All files of a model; read anew only if the first one has changed: every save asks."""
    stat = os.stat(path)
    return _parts_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _parts_of(path: Path, _: int, __: int) -> tuple[Path, ...]:
    return (path, *(part.path for part in read_parts(read_header(path))))


def _digest(path: Path) -> str:
    stat = os.stat(path)
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest_of(path: Path, size: int, _: int) -> str:
    """XXH3-128 of a file's size and content, or of samples of a large one."""
    digest = xxh3_128(size.to_bytes(8, "little"))
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(HEAD_BYTES))
            for i in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
