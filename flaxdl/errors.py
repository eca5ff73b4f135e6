"""Exceptions that flaxdl raises on purpose; any other exception is a bug."""


class UserError(ValueError):
    """Error in the user's input, such as an invalid value or a missing file.

    The message states what was wrong, what was given and what is allowed. The command line prints
    it without a traceback and exits with code 2.
    """


class SaveError(OSError):
    """Failure to write a checkpoint or metrics; files written earlier stay intact."""
