"""Entry point of `python -m flaxdl COMMAND ...`; see `flaxdl.cli`."""

import sys
from typing import NoReturn

from flaxdl.cli import leave, main


def script() -> NoReturn:
    """Entry point of the installed `flaxdl` command."""
    leave(main(sys.argv[1:], program="flaxdl"))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
