"""Pure functions that layers and the training step compute with, and their fast lowerings.

Here belongs the mathematics of a layer without its parameters, and what makes it fast on a
platform.
"""
