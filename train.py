"""Trains a model from a config file: python train.py --config configs/NAME.py."""

import sys

from flaxdl.cli import leave, main

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]], program="train.py"))
