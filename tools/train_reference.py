"""Train the reference model: a small retrieval model that the package can ship.

Usage: python tools/train_reference.py --out FOLDER [--start model.gguf --insert 1,2] [options]

Needs `pip install ".[train]"`. Starts from nothing, or from the weights and the tokenizer of an
earlier reference model. The same command goes on where it was stopped. The folder gets log.jsonl,
checkpoint.npz and, at the end or with --steps reached, the GGUF file. docs/reference-model.md tells
how the shipped model was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # works without installing the package


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--start", type=Path, help="GGUF file to begin from")
    parser.add_argument("--insert", default="", help="layers of it behind which a copy is put: 1,2")
    parser.add_argument("--layers", type=int, default=6, help="layers when starting from nothing")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.02, help="peak, of the matrices (Muon)")
    parser.add_argument("--lr-adam", type=float, default=3e-3, help="peak, of all else (AdamW)")
    parser.add_argument("--mix", default="", help="shares of drills as JSON, for those named")
    parser.add_argument("--sizes", default="", help="shares of sequence lengths as JSON")
    parser.add_argument("--diluted", type=int, default=0, help="tokens that short texts stand for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=200)
    return parser.parse_args()


def main() -> None:
    """Train and write the model."""
    args = arguments()
    try:
        import torch
        from reference import gguf_file, vocabulary
        from reference.batches import Writer
        from reference.drills import NAMES
        from reference.network import Network, Shape, deepen
        from reference.training import MIX, Plan, Trainer, run
    except ImportError as error:
        raise SystemExit(f'{error.name} is missing: pip install ".[train]" brings it.') from None
    from icecache_local.texts import stdlib_texts

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if args.start:
        shape, weights = gguf_file.read(args.start)
        words = vocabulary.read(args.start)
        network = Network.of_weights(Shape(**shape), weights)
        network = deepen(network, [int(i) for i in args.insert.split(",") if i])
    else:
        words = vocabulary.learn(stdlib_texts(Random(0)), NAMES["first"] + NAMES["last"])
        network = Network(Shape(n_vocab=len(words.tokens), n_layers=args.layers))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    mix = MIX | (json.loads(args.mix) if args.mix else {})
    sizes = {int(k): v for k, v in json.loads(args.sizes or "{}").items()}
    plan = Plan(args.steps, args.seed, args.tokens, args.lr, args.lr_adam, mix, sizes, args.diluted)
    trainer = Trainer(network, Writer(words.tokenizer()), plan)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "checkpoint.npz").exists():
        trainer.load(args.out / "checkpoint.npz")
    run(trainer, args.out, args.log_every, args.save_every)
    name = f"retr-{sum(p.numel() for p in network.parameters()) / 1e6:.0f}m"
    path = args.out / f"{name}-f16.gguf"
    gguf_file.write(path, name, dataclasses.asdict(network.shape), network.weights(), words)
    print(path)


if __name__ == "__main__":
    main()
