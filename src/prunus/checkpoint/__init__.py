"""Checkpoints: what a run leaves on disk."""
