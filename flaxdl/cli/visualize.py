"""`visualize`: figures of the weights and activations of a run's best checkpoint."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flaxdl.analysis import visualization
from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import output_file, writing
from flaxdl.filesystem.remote_urls import is_url

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str], program: str) -> None:
    """Plot filters, feature maps, attention, saliency or hidden states as a PNG."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: Path,
    what: visualization.What,
    item: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(name="INPUT")] = None,
    layer: str | None = None,
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None,
    to: Path | None = None,
    config: RunConfigFile = None,
) -> None:
    """Plot filters, activations or explanations of a run's best checkpoint for one input.

    Args:
        workdir: Run directory.
        what: Kind of figure: filters (weights of the first convolution), features (feature maps of
            each layer), receptive-field (pixels that the center unit of each layer depends on),
            attention (attention weights), saliency (input gradients of the prediction), grad-cam
            (class activation map of the last feature maps), hidden-state (states of a recurrent
            network).
        item: Image file, sound file (for models of spectrograms, not waveforms) or text, of the
            same kind as the run's data; not needed for filters.
        layer: Name of a single layer to plot, such as layer4. For grad-cam, the layer with the
            feature maps, by default the last. For filters, the convolution, by default the first.
        class_name: Class that saliency and grad-cam explain, by default the most probable one; or
            target of a regression, which is needed if there are several.
        to: Output file (.png); by default, WHAT.png in the run directory.
    """
    if to is None and is_url(workdir):
        raise UserError("the figure of a run in a bucket needs an output file; set --to FILE")
    path = output_file(to or workdir / f"{what}.png", (".png",))
    figure = visualization.visualize(
        workdir,
        item,
        what,
        layer=layer,
        class_name=class_name,
        config=load_run_config(config),
    )
    with writing(path):
        _save(figure, path)
    print(f"wrote {path}")


def _save(figure: "Figure", path: Path) -> None:
    """Saves a figure, with one warning for all characters that the font lacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, format="png")
    missing = [one for one in caught if "missing from font" in str(one.message)]
    if missing:
        print("characters that the font of the figure lacks are drawn as boxes", file=sys.stderr)
    for one in caught:
        if one not in missing:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
