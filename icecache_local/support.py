"""Which models can be driven exactly, told from the file's header alone."""

from __future__ import annotations

from .errors import UnsupportedModelError
from .gguf_info import ModelInfo

# Architectures that tests/test_architectures.py compares with llama.cpp.
TESTED = frozenset(
    {
        *("llama", "qwen2", "qwen2vl", "qwen3", "qwen3moe", "phi3", "command-r", "olmo2"),
        *("granite", "smollm3", "glm4", "gemma2", "gemma3", "gemma4", "gpt-oss", "cohere2"),
        *("lfm2", "granitehybrid", "nemotron_h", "falcon-h1", "jamba", "qwen3next", "qwen35"),
        *("openelm", "deepseek2"),
    }
)
INDEXED = frozenset(
    {
        *("deepseek32", "deepseek4", "dots3note", "glm-dsa", "glm5-next", "hy_v4"),
        *("minimax-m3", "qwen4exp"),
    }
)
ALIBI = frozenset({"bloom", "refact"})  # llama.cpp sets their bias, the file does not tell
BAICHUAN_13B_LAYERS = 40
INSTEAD = "use llama_cpp.Llama for this model"


def verdict(info: ModelInfo) -> tuple[bool, str]:
    """Tell whether a model can be loaded by `IceLlama`.

    Parameters
    ----------
    info : ModelInfo

    Returns
    -------
    supported : bool
    sentence : str
        Why not and what to do, or what is taken over.
    """
    reason = _reason(info)
    if reason:
        return False, f"{info.architecture} is not supported: {reason}; {INSTEAD}."
    cached, n_sliding = len(info.cached_layers), sum(info.sliding)
    parts = [f"{cached} of {info.n_layers} layers attend to everything and are taken over"]
    if n_sliding:
        parts.append(
            f"{n_sliding} look back {info.n_swa:,} tokens, which all layers then keep resident "
            "beside the budget"
        )
    if info.is_recurrent:
        parts.append("recurrent states cannot be cut: an edited prompt is read again as a whole")
    if info.architecture not in TESTED:
        parts.append("it is not among those tested, so loading may yet refuse its graph")
    return True, f"{info.architecture} is supported: {'; '.join(parts)}."


def _reason(info: ModelInfo) -> str | None:
    arch = info.architecture
    if (
        info.max_alibi_bias > 0
        or arch in ALIBI
        or (arch == "baichuan" and info.n_layers == BAICHUAN_13B_LAYERS)
    ):
        return "ALiBi biases each cell by the position llama.cpp believes it to have"
    if arch in INDEXED:
        return "it selects tokens by an indexer of its own"
    if arch == "grok":
        return "llama.cpp cannot run it with flash attention"
    if not info.cached_layers:
        return "no layer attends to everything"
    for dim in (info.head_dim_k, info.head_dim_v):
        if dim % 8 or dim > 576:
            return f"its head dims are {info.head_dim_k} and {info.head_dim_v}, not multiples of 8"
    return None


def is_storable(info: ModelInfo) -> bool:
    """Whether K and V are all that a model keeps of what it has read."""
    return not (info.n_swa or info.is_recurrent)


def refuse_partial(info: ModelInfo) -> None:
    """Refuse to keep models on disk that hold more than K and V of what they have read.

    Raises
    ------
    UnsupportedModelError
    """
    if not is_storable(info):
        raise UnsupportedModelError(
            f"{info.name} keeps more than a session can hold (a sliding window or a recurrent "
            "state): leave --session out; save_state lasts as long as the process."
        )
