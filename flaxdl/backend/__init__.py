"""Process-wide settings: XLA flags, compilation cache and malloc.

Only this package changes settings of the whole process, such as flags and environment variables.
"""
