"""Policies: published ways to choose the resident tokens, behind one interface.

All run through the product's own hook, host tier and slots (see `llama.PolicyLlama`), so that
they differ only in which tokens they keep.
"""

from .arkvale import ArkVale
from .base import Policy
from .clusterkv import ClusterKV
from .full import Full
from .icecache import IceCache, IceCacheReuse, IceCacheTokens
from .magicpig import MagicPIG
from .omnikv import OmniKV
from .pqcache import PQCache
from .quest import Quest
from .random_tokens import RandomTokens
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .topk import ExactTopK

POLICIES: dict[str, type[Policy]] = {
    "full": Full,
    "topk": ExactTopK,
    "icecache": IceCache,
    "icecache-tokens": IceCacheTokens,
    "icecache-r": IceCacheReuse,
    "streaming-llm": StreamingLLM,
    "snapkv": SnapKV,
    "quest": Quest,
    "arkvale": ArkVale,
    "omnikv": OmniKV,
    "pqcache": PQCache,
    "magicpig": MagicPIG,
    "clusterkv": ClusterKV,
    "random": RandomTokens,
}

__all__ = ["POLICIES", "Policy"]
