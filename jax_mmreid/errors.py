"""The errors that end a run with one line and an exit code; everything else is a defect and shows a traceback."""

import sys


class ConfigError(Exception):
    """The configuration cannot be run. The message is one line: what is wrong, and the way out. Exit code 2."""


class DataError(Exception):
    """The data on disk cannot be used. The message is one line: what, where, and the way out. Exit code 3."""


class NonFiniteError(Exception):
    """The loss or a gradient is NaN or infinite. Exit code 4."""


class PreemptedError(Exception):
    """The process was asked to stop and has saved its state. Exit code 75."""


EXIT_CODES = {ConfigError: 2, DataError: 3, NonFiniteError: 4, PreemptedError: 75}


def report_error(program: str, error: Exception) -> int:
    """Prints one of these errors as one line on standard error; returns its exit code."""
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
