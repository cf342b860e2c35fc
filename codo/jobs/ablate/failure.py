"""Why a job ended without a result: its exit code, and the last line of its log; torchrun's own words apart."""

from __future__ import annotations

import re
import time
from pathlib import Path

from codo.jobs.ablate.jobs import JobFolder
from codo.runs.files import write_json

TAIL_BYTES = 1 << 16
STARTED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d codo ", re.MULTILINE)
"""What `start` writes before the job's own lines."""
ELASTIC = re.compile(r"^\w+ .*torch/distributed/elastic/\S+ (?:failed \(exitcode|Sending|Received)", re.MULTILINE)
"""How torchrun begins to say that a process ended."""
EXIT_CODE = re.compile(r"failed \(exitcode: (-?\d+)\)")
SIGNALLED = re.compile(r"SignalException: .*got signal: (\d+)")
ERROR = re.compile(r"(?:Error|[\w.]+(?:Error|Exception)): ")
RANK = re.compile(r"^(?:process \d+|\[rank\d+\]): ?")
"""What codo, and torch in a traceback, put before a line where there are several processes."""
NO_REASON = "another process failed"
"""What the other processes say (`World`)."""


def exit_code(folder: JobFolder, code: int) -> int:
    """Tell the exit code of the job itself, where torchrun's is 1 whatever happened.

    Args:
        folder: of the job.
        code: exit code of the process that was started; minus a signal's number.

    Returns:
        Of the process of the job that failed first; 128 and the signal's number where torchrun was told to stop.
    """
    if code != 1:
        return code
    text = _last_session(folder.path / "log.txt")
    if signalled := SIGNALLED.search(text):
        return 128 + int(signalled[1])
    failed = EXIT_CODE.search(text) if ELASTIC.search(text) else None
    return int(failed[1]) if failed else code


def note_failure(folder: JobFolder, code: int) -> str:
    """Say in a line why a job ended without a result, and write failed.json unless it was killed from outside.

    Args:
        folder: of the job.
        code: from `exit_code`.
    """
    if code < 0:
        return f"killed by signal {-code}{' (out of memory?)' if code == -9 else ''}; it goes on when it is run again"
    message = last_line(folder.path / "log.txt") or f"exit code {code}, no message"
    write_json(folder.path / "failed.json", {"message": message, "code": code, "time": time.strftime("%Y-%m-%d %H:%M")})
    return message


def last_line(log: Path) -> str:
    """Find the last line that says something; of several processes the last error before torchrun ends them."""
    text = _last_session(log)
    elastic = ELASTIC.search(text)
    own = text[: elastic.start()] if elastic else text
    lines = [RANK.sub("", line).strip() for line in own.splitlines() if line.strip()]
    told = [line for line in lines if ERROR.match(line) and NO_REASON not in line] if elastic else []
    return (told or lines or [""])[-1].removeprefix("Error: ")


def _last_session(log: Path) -> str:
    """Read the end of a log, from the last start of the job on."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    starts = list(STARTED.finditer(text))
    return text[starts[-1].start() :] if starts else text
