"""A run: its plan and data, its workdir, and what is done with its checkpoints.

Here belongs what ties a config, its data and the files of one run together; nothing here knows how
a report or an export looks.
"""
