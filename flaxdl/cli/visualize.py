"""`visualize`: a figure of what a run's best checkpoint computes for an input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.analysis import visualization
from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.filesystem.outputs import output_file, writing


def main(arguments: Sequence[str], program: str) -> None:
    """Plot filters, feature maps, attention, saliency or hidden states as a PNG."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: Path,
    what: visualization.What,
    item: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(name="INPUT")] = None,
    to: Path | None = None,
    config: RunConfigFile = None,
) -> None:
    """Plot what a run's best checkpoint computes for an image file or a text.

    Args:
        workdir: Folder of the run.
        what: Weights of the first convolution (filters), activations of each layer (features),
            pixels that a unit depends on (receptive-field), attention weights (attention), what
            the prediction depends on, by gradients (saliency) or by the last feature maps
            (grad-cam), or the states of a recurrent network (hidden-state).
        item: Image file or text, as in the run's data; not needed for filters.
        to: PNG file to write; by default WHAT.png in the run's folder.
    """
    path = output_file(to or workdir / f"{what}.png", (".png",))
    figure = visualization.visualize(workdir, item, what, config=load_run_config(config))
    with writing(path):
        figure.savefig(path, format="png")
    print(f"wrote {path}")
