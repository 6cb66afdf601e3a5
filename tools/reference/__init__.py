"""Parts of `tools/train_reference.py`: texts, batches, network, optimizer, file."""
