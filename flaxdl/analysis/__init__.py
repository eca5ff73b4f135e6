"""Analysis of networks and training steps: layers, memory, time, learning rates, interpretability.

The modules of this package measure or plot a model or a run without training it to the end.
"""
