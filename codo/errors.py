"""The one exception for mistakes that a user can mend."""


class CodoError(Exception):
    """What was wrong, where (file, key), and what would be right, in one line.

    The command line prints it without a traceback and exits with code 2.
    """
