"""`export`: conversion of a run's best checkpoint to other formats."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.exporters import exporting


def main(arguments: Sequence[str], program: str) -> None:
    """Export a run's best checkpoint to PyTorch, Hugging Face or StableHLO."""
    tyro.cli(command, prog=program, args=arguments)


def command(workdir: Path, to: Path, config: RunConfigFile = None) -> None:
    """Export a run's best checkpoint to PyTorch, Hugging Face or StableHLO.

    Args:
        workdir: Run directory.
        to: Output path: NAME.safetensors for weights with PyTorch's parameter names, NAME.stablehlo
            for a StableHLO program, or (for BERT) a new folder that Hugging Face transformers can
            load.
    """
    exporting.export(workdir, to, config=load_run_config(config))
    print(f"wrote {to}")
