"""`python -m flaxdl COMMAND ...`; see `flaxdl.commands`."""

import sys

from flaxdl.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
