"""Errors that are raised on purpose; any other exception is a bug."""


class UserError(ValueError):
    """A mistake of the user, such as an impossible value or a missing file.

    Its message says what was wrong, what was given and what is allowed, so the command line prints
    it without a traceback (exit code 2).
    """


class SaveError(OSError):
    """A checkpoint or metrics could not be written; what was written before is as it was."""
