"""Runs: setup, working directories, restoring, evaluation and prediction.

This package connects the config, the data and the files of one run. It does not depend on reports
or exports.
"""
