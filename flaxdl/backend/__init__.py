"""Process-wide settings of XLA, the compilation cache and the C library.

Here belongs what changes the whole process; no other module sets flags or environment variables.
"""
