"""Checkpoints of a run: written by Orbax, verified by checksums, removed when not needed."""
