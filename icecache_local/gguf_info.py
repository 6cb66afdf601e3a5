"""What a GGUF file's header tells about a model, read without loading the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import ModelShape
from .errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from .gguf_header import Header

# Sliding-window layers per period where the file names the window but not the pattern, as
# llama.cpp fills it in: every n-th layer attends to everything, or, if negative, the first of n.
SWA_PERIODS = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4,
    "exaone-moe": 4, "olmo2": 4, "mellum": 4, "plamo3": 8, "llama4": 4, "smallthinker": -4,
}  # fmt: skip
SWA_WINDOWS = {"gemma2": 4096, "exaone4": 4096, "smallthinker": 4096, "llama4": 8192}
MOST_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
GEMMA3N_OWN = 20  # layers of gemma3n with K and V of their own
SWA_IGNORED = {"phi3", "phimoe"}  # llama.cpp runs these with full attention

ENCODERS = re.compile(r".*bert.*|gemma-embedding|llama-embed|t5encoder")
REFUSED = {
    "clip": "a vision or audio projector; pass the language model it belongs to",
    "t5": "an encoder-decoder model; pass a decoder-only chat model",
    "wavtokenizer-dec": "an audio decoder; pass a decoder-only chat model",
    "dream": "a diffusion model; pass an autoregressive chat model",
    "llada": "a diffusion model; pass an autoregressive chat model",
    "llada-moe": "a diffusion model; pass an autoregressive chat model",
    "rnd1": "a diffusion model; pass an autoregressive chat model",
}


@dataclass(frozen=True)
class ModelInfo:
    """The header of a GGUF model, as far as cache and memory depend on it.

    Attributes
    ----------
    path : Path
        The file, for a split model its first part.
    architecture, name : str
        `general.architecture` and `general.name` (the file's stem where it has none).
    n_layers : int
        Blocks that run, layers for multi-token prediction left out.
    n_heads : int
        Query heads H of the widest layer.
    kv_heads : tuple of int, one per layer
        KV heads G; 0 where the layer holds no cache of its own (recurrent or shared).
    sliding : tuple of bool, one per layer
        True where llama.cpp keeps only the last `n_swa` tokens.
    head_dim_k, head_dim_v : int
        Head dims of the full-attention layers; `head_dim_v` is 0 for MLA, whose V is a
        view of K.
    head_dim_k_swa, head_dim_v_swa : int
        Head dims of the sliding-window layers.
    n_swa : int
        Sliding window in tokens, 0 without one.
    n_embd, n_ff, n_vocab : int
        Widths; `n_ff` is what one token activates (experts used x expert width).
    n_experts_used : int
        Experts that see a token, 0 in a dense model.
    n_ctx_train : int
        Context the model was trained for, in tokens, 0 if the file does not tell.
    weight_bytes : int
        Bytes of all tensors, all parts together.
    block_bytes : tuple of int
        Bytes of each layer's tensors, and of the output's as the last.
    is_mla : bool
        Multi-head latent attention with a compressed cache.
    is_recurrent : bool
        Some layers keep a recurrent state beside or instead of a KV cache.
    max_alibi_bias : float
        Largest ALiBi slope, 0 without ALiBi.
    n_shared_layers : int
        Layers that attend to the K and V of an earlier one.
    rope_border : int
        Context in tokens beyond which other rotary factors hold, 0 where there is one set.
    """

    path: Path
    architecture: str
    name: str
    n_layers: int
    n_heads: int
    kv_heads: tuple[int, ...]
    sliding: tuple[bool, ...]
    head_dim_k: int
    head_dim_v: int
    head_dim_k_swa: int
    head_dim_v_swa: int
    n_swa: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_experts_used: int
    n_ctx_train: int
    weight_bytes: int
    block_bytes: tuple[int, ...]
    is_mla: bool
    is_recurrent: bool
    max_alibi_bias: float
    n_shared_layers: int = 0
    rope_border: int = 0

    @property
    def cached_layers(self) -> tuple[int, ...]:
        """Layers whose cache grows with the context: the ones icecache-local takes over."""
        return tuple(i for i, g in enumerate(self.kv_heads) if g and not self.sliding[i])

    @property
    def shape(self) -> ModelShape:
        """Attention shape of the cached layers; its `n_layers` counts those alone.

        Raises
        ------
        UnsupportedModelError
            If the cached layers do not all have the same number of KV heads.
        """
        counts = {self.kv_heads[i] for i in self.cached_layers}
        if len(counts) != 1:
            raise UnsupportedModelError(
                f"{self.path.name}: its layers have different numbers of KV heads "
                f"({sorted(counts)}), which is not supported; pass a model with one number."
            )
        return ModelShape(
            len(self.cached_layers), self.n_heads, counts.pop(), self.head_dim_k, self.head_dim_v
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's f16 K and V over all cached layers."""
        heads = sum(self.kv_heads[i] for i in self.cached_layers)
        return 2 * heads * (self.head_dim_k + self.head_dim_v)

    @property
    def sliding_token_bytes(self) -> int:
        """Bytes of one token's f16 K and V over all sliding-window layers."""
        heads = sum(g for g, swa in zip(self.kv_heads, self.sliding, strict=True) if swa)
        return 2 * heads * (self.head_dim_k_swa + self.head_dim_v_swa)

    def cell_bytes(self, layer: int) -> int:
        """Bytes of one token's f16 K and V in one layer."""
        k, v = self.head_dim_k, self.head_dim_v
        if self.sliding[layer]:
            k, v = self.head_dim_k_swa, self.head_dim_v_swa
        return 2 * self.kv_heads[layer] * (k + v)

    def blocks_on_gpu(self, n_gpu_layers: int) -> range:
        """Layers that llama.cpp puts on GPUs: the last ones, the output counted as one; -1 all."""
        first = 0 if n_gpu_layers < 0 else max(0, self.n_layers + 1 - n_gpu_layers)
        return range(first, self.n_layers)


def read_model_info(path: str | Path) -> ModelInfo:
    """Read the header of a GGUF model.

    Parameters
    ----------
    path : str or Path
        The model file; of a split model the first part, the others beside it.

    Returns
    -------
    ModelInfo

    Raises
    ------
    ModelFileError
        If the file is missing, a directory, not a GGUF, damaged, or lacks parts.
    UnsupportedModelError
        If the model generates no text or has no attention layers.
    """
    from .gguf_header import read_header, read_parts

    path = Path(path)
    header = read_header(path)
    arch = header.get("general.architecture")
    if not isinstance(arch, str):
        raise ModelFileError(f"{path} names no architecture; it holds no model, download another.")
    _refuse_non_generators(path, arch, header)
    sizes = [size for part in (header, *read_parts(header)) for size in part.bytes_of.items()]
    try:
        return _model_info(path, arch, header, sizes)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, (ModelFileError, UnsupportedModelError)):
            raise
        raise ModelFileError(
            f"{path} is damaged: its metadata contradict each other; download it again."
        ) from error


def _refuse_non_generators(path: Path, arch: str, header: Header) -> None:
    """Raise UnsupportedModelError for models that cannot continue a text."""
    pooling = header.get(f"{arch}.pooling_type", 0)
    causal = header.get(f"{arch}.attention.causal", True)
    if ENCODERS.fullmatch(arch) or pooling or not causal:
        raise UnsupportedModelError(
            f"{path.name} ({arch}) only makes embeddings; pass a model that generates text."
        )
    if arch in REFUSED:
        raise UnsupportedModelError(f"{path.name} ({arch}) is {REFUSED[arch]}.")
    if not header.get(f"{arch}.attention.head_count"):
        raise UnsupportedModelError(
            f"{path.name} ({arch}) has no attention layers, so there is no KV cache to move; "
            "run it with llama.cpp alone."
        )


def _model_info(path: Path, arch: str, header: Header, sizes: list[tuple[str, int]]) -> ModelInfo:
    """Assemble a ModelInfo from the header's key/value pairs."""

    def get(key: str, default: Any = None) -> Any:
        return header.get(f"{arch}.{key}", default)

    n_blocks = int(get("block_count", 0))
    n_layers = n_blocks - int(get("nextn_predict_layers", 0))
    n_embd = int(get("embedding_length", 0))
    if n_layers < 1 or n_embd < 1:
        raise ModelFileError(f"{path} tells no layer count or width; download another file.")
    if n_blocks > MOST_LAYERS:
        raise ModelFileError(
            f"{path} is damaged: it tells of {n_blocks} layers, and llama.cpp loads at most "
            f"{MOST_LAYERS}; download it again."
        )
    heads = _per_layer(get("attention.head_count"), n_layers)
    kv_heads = _per_layer(get("attention.head_count_kv", heads), n_layers)
    recurrent = _recurrent_layers(arch, get, kv_heads)
    default = max(0, n_layers - GEMMA3N_OWN) if arch == "gemma3n" else 0
    n_shared = int(get("attention.shared_kv_layers", default))
    own = n_layers - n_shared
    kv_heads = tuple(0 if recurrent[i] or i >= own else g for i, g in enumerate(kv_heads))
    if not any(kv_heads):
        raise UnsupportedModelError(
            f"{path.name} ({arch}) has no attention layers, so there is no KV cache to move; "
            "run it with llama.cpp alone."
        )
    n_heads = max(heads)
    dim_k = int(get("attention.key_length", n_embd // n_heads))
    dim_v = int(get("attention.value_length", n_embd // n_heads))
    is_mla = get("attention.kv_lora_rank") is not None and (
        get("attention.key_length_mla") is not None
    )
    n_swa, sliding = _sliding_layers(arch, get, n_layers)
    used = int(get("expert_used_count", 0))
    n_ff = max(_per_layer(get("feed_forward_length", 0), n_layers))
    if used:
        n_ff = max(used * int(get("expert_feed_forward_length", n_ff)), 1)
    weight_bytes = sum(n_bytes for _, n_bytes in sizes)
    n_vocab = header.n_vocab or int(get("vocab_size", 0))
    if min(dim_k, dim_v, *kv_heads) < 0 or dim_k == 0 or weight_bytes == 0:
        raise ModelFileError(f"{path} is damaged: impossible sizes; download it again.")
    return ModelInfo(
        path=path,
        architecture=arch,
        name=str(header.get("general.name") or path.stem),
        n_layers=n_layers,
        n_heads=n_heads,
        kv_heads=kv_heads,
        sliding=sliding,
        head_dim_k=dim_k,
        head_dim_v=0 if is_mla else dim_v,
        head_dim_k_swa=int(get("attention.key_length_swa", dim_k)),
        head_dim_v_swa=int(get("attention.value_length_swa", dim_v)),
        n_swa=n_swa,
        n_embd=n_embd,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_experts_used=used,
        n_ctx_train=int(get("context_length", 0)),
        weight_bytes=weight_bytes,
        block_bytes=_block_bytes(sizes, n_layers),
        is_mla=is_mla,
        is_recurrent=any(recurrent) or get("ssm.state_size") is not None,
        max_alibi_bias=float(get("attention.max_alibi_bias", 0.0)),
        n_shared_layers=n_shared,
        rope_border=_rope_border(get, header),
    )


def _block_bytes(sizes: list[tuple[str, int]], n_layers: int) -> tuple[int, ...]:
    """Bytes of each layer's tensors, then of the output's; a tied embedding is loaded twice."""
    blocks, embedding, tied = [0] * (n_layers + 1), 0, True
    for name, n_bytes in sizes:
        block = re.match(r"blk\.(\d+)\.", name)
        if block and int(block[1]) < n_layers:
            blocks[int(block[1])] += n_bytes
        elif name.startswith("output"):
            blocks[-1] += n_bytes
            tied = tied and name != "output.weight"
        elif name == "token_embd.weight":
            embedding += n_bytes
    return *blocks[:-1], blocks[-1] + (embedding if tied else 0)


def _rope_border(get: Any, header: Header) -> int:
    """Context length that parts the two sets of rotary factors, where there are two."""
    if "rope_factors_long.weight" not in header.tensor_names:
        return 0
    return int(get("rope.scaling.original_context_length", get("context_length", 0)))


def _per_layer(value: Any, n_layers: int) -> tuple[int, ...]:
    """Spread a number over the layers; an array is cut to them (it may cover more)."""
    if isinstance(value, (list, tuple)):
        if len(value) < n_layers:
            raise ValueError(f"{len(value)} values for {n_layers} layers")
        return tuple(int(v) for v in value[:n_layers])
    return (int(value),) * n_layers


def _recurrent_layers(arch: str, get: Any, kv_heads: tuple[int, ...]) -> tuple[bool, ...]:
    """Tell which layers are recurrent: no KV heads, listed, or all but every n-th."""
    n_layers = len(kv_heads)
    listed = get("attention.recurrent_layers")
    if listed is not None:
        return tuple(bool(v) for v in _per_layer(listed, n_layers))
    hybrids = {"qwen3next", "qwen35", "qwen35moe"}  # whose interval may be left out
    interval = get("full_attention_interval", 4 if arch in hybrids else None)
    if interval is not None:
        return tuple((i + 1) % int(interval) != 0 for i in range(n_layers))
    return tuple(g == 0 for g in kv_heads)


def _sliding_layers(arch: str, get: Any, n_layers: int) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens and which layers slide, as llama.cpp will run the model."""
    window = int(get("attention.sliding_window", SWA_WINDOWS.get(arch, 0)))
    pattern = get("attention.sliding_window_pattern", SWA_PERIODS.get(arch))
    if window == 0 or arch in SWA_IGNORED or pattern is None:
        return 0, (False,) * n_layers
    if isinstance(pattern, (list, tuple)):
        sliding = tuple(bool(v) for v in _per_layer(pattern, n_layers))
    else:
        period = abs(int(pattern))
        full = 0 if pattern < 0 else period - 1
        sliding = tuple(period == 0 or i % period != full for i in range(n_layers))
    return window if any(sliding) else 0, sliding
