"""What the command line tells in a line and an exit code: mistakes, interruptions; and what was meant by a name."""

import difflib
from collections.abc import Iterable


class CodoError(Exception):
    """A mistake that a user can mend: what was wrong, where (file, key), and what would be right, in one line.

    The command line prints it without a traceback and exits with code 2.

    Example:
        >>> import codo
        >>> try:
        ...     codo.load_pretrain_config(sets=["optim.epoch=3"])
        ... except codo.CodoError as error:
        ...     print(error)
        config: there is no field 'optim.epoch'; did you mean optim.epochs?
    """


class Interrupted(Exception):
    """The job was asked to stop by a signal, and has saved its state.

    Args:
        number: of the signal.
        done: how far it came.
        command: the one that goes on with it; None where the command, or call, that was given does.

    Attributes:
        exit_code: 128 + the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.

    Example:
        >>> Interrupted(15, "stopped after step 3").exit_code
        143
    """

    def __init__(self, number: int, done: str, command: str | None = None) -> None:
        super().__init__(done if command is None else f"{done}; go on with: {command}")
        self.number, self.done, self.command = number, done, command
        self.exit_code = 128 + number


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the name that a misspelt word is most like; None where it is like none.

    Example:
        >>> nearest("tranfer", ["pretrain", "transfer"]), nearest("x", ["pretrain", "transfer"])
        ('transfer', None)
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
