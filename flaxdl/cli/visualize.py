"""`visualize`: a picture of what a run's best network does with an input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.analysis import visualization
from flaxdl.config_files import load_config
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


def visualize(arguments: Sequence[str], program: str) -> None:
    """Draws filters, feature maps, attention, saliency and the like as a PNG."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: Path,
    what: visualization.What,
    item: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(name="INPUT")] = None,
    to: Path | None = None,
    config: str | None = None,
) -> None:
    """Draws what a run's best checkpoint does with an image file or a text.

    Args:
        workdir: The folder of the run.
        what: The weights of the first convolution, what each layer makes of the image, what
            it sees of it, which tokens look at which, what the answer hangs on (by gradients,
            or by the last feature maps), or a recurrent network's memory.
        item: An image file, or a text, as the run was trained on; filters need none.
        to: The PNG file; by default WHAT.png in the run's folder.
        config: The run's config file, where it uses classes of your own.
    """
    value = None if config is None else load_config(config)
    path = local_path(to or workdir / f"{what}.png")
    if path.suffix.lower() != ".png":
        raise UserError(f"--to must be a .png file, got {path}")
    figure = visualization.visualize(workdir, item, what, config=value)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}")
