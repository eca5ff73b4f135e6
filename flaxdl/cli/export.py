"""`export`: a run's best checkpoint as a file for others."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from flaxdl.config_files import load_config
from flaxdl.exporters import exporting


def export(arguments: Sequence[str], program: str) -> None:
    """Writes a run's best checkpoint for PyTorch, for Hugging Face, or as a program."""
    tyro.cli(command, prog=program, args=arguments)


def command(workdir: Path, to: Path, config: str | None = None) -> None:
    """Writes a run's best checkpoint as a file for others.

    Args:
        workdir: The folder of the run.
        to: NAME.safetensors for PyTorch, NAME.stablehlo for a program with its weights, or a
            directory that Hugging Face loads, of a BERT.
        config: The run's config file, where it uses classes of your own.
    """
    value = None if config is None else load_config(config)
    exporting.export(workdir, to, config=value)
    print(f"wrote {to}")
