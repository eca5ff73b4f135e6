"""Trained networks for other programs: safetensors, a Hugging Face folder, StableHLO.

Here belongs a format that another program reads, one per file; `exporting` chooses by file name.
"""
