"""Checkpoints of a run: written by Orbax, verified by checksums, kept while they are needed."""
