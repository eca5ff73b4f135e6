"""Paths, lock files and atomic writes."""
