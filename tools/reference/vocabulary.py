"""The reference model's tokenizer: byte-level BPE, taken from a GGUF file or learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# llama.cpp's name for this way to split text: words with their blank, digits one by one.
PRE = "qwen2"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE.

    Attributes
    ----------
    tokens : list of str
        By id, bytes spelled as GPT-2 does; the first are `SPECIAL`.
    merges : list of str
        Two tokens and a blank between them, in the order of their rank.
    """

    tokens: list[str]
    merges: list[str]

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer; special tokens are never made from text."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        pairs = [tuple(merge.split(" ")) for merge in self.merges]
        return _with_split(models.BPE(vocab=ids, merges=pairs))


def _with_split(bpe: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read(path: Path) -> Vocabulary:
    """Read the tokenizer of a GGUF file."""
    fields = gguf.GGUFReader(str(path)).fields
    return Vocabulary(
        fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
    )


def learn(texts: Iterable[str], words: Sequence[str], size: int = 4096) -> Vocabulary:
    """Learn a vocabulary in which each of `words` is one token with a blank in front.

    Parameters
    ----------
    texts : iterable of str
    words : sequence of str
        Names, that facts are about.
    size : int
        Tokens, `SPECIAL` and the 256 bytes included.

    Returns
    -------
    Vocabulary
    """
    tokenizer = _with_split(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # So often that its merges come before those of the texts.
    often = [" ".join(["", *words])] * 2000
    tokenizer.train_from_iterator([*texts, *often], trainer)
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return Vocabulary(tokens, merges)
