"""Training: the rooms that know the Trainer of transformers."""
