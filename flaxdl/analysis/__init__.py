"""Analysis of networks and training steps: layers, memory, time, learning rates, interpretability.

Here belongs what measures or draws a model or a run without training it to the end.
"""
