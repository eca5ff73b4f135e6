"""What a run could not write."""


class Unsaved(OSError):
    """A checkpoint or metrics could not be written; what was written before is as it was."""
