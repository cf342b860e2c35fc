"""The two exceptions that the command line turns into an exit code."""


class CodoError(Exception):
    """A mistake that a user can mend: what was wrong, where (file, key), and what would be right, in one line.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """The job was asked to stop by a signal, and has saved its state.

    Args:
        number: of the signal.
        message: what was saved and the command that resumes.

    Attributes:
        exit_code: 128 + the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
