"""Modules that several tests and benchmarks share."""
