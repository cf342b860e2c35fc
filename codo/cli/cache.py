"""`codo cache`: the decoded images that are kept between runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from codo.data.cache_care import Entry

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Size(click.ParamType):
    """A number of bytes: `500M`, `1.5G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no size; write bytes, or e.g. 500M or 1.5G", param, ctx)
        return round(float(found[1]) * UNITS[found[2]])


@click.group("cache", short_help="List, check or clear the decoded images that runs keep.")
def cache_command() -> None:
    """List, check or clear the decoded images that runs keep in $CODO_CACHE.

    Where that is not set: $XDG_CACHE_HOME/codo, else ~/.cache/codo.
    """


@cache_command.command("list")
def list_command() -> None:
    """List the files, the latest used first: size, last use, what they hold."""
    from codo.data.cache_care import entries
    from codo.runs.caching import bytes_text, cache_root

    found = entries()
    for entry in found:
        click.echo(_line(entry))
    click.echo(f"{len(found)} files, {bytes_text(sum(e.bytes for e in found))}, in {cache_root()}")


@cache_command.command("verify")
@click.option("--remove", is_flag=True, help="Remove what is damaged.")
def verify_command(remove: bool) -> None:
    """Check the files' checksums, and the images that they were made of against their hashes."""
    from codo.data.cache_care import clear, entries, verify
    from codo.errors import CodoError
    from codo.runs.console import counter

    damaged = []
    for entry in entries():
        if entry.file.suffix != ".pool":
            continue
        with counter(f"verifying {entry.file.stem}") as show:
            good, text = verify(entry.file, show)
        click.echo(f"{'ok' if good else 'DAMAGED'} {entry.file}: {text}")
        damaged += [] if good else [entry]
    if damaged and remove:
        _report(*clear(damaged))
    elif damaged:
        raise CodoError(f"{len(damaged)} caches are damaged; remove them with: codo cache verify --remove")


@cache_command.command("clear")
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Only what was not used for so long.")
@click.option("--keep-bytes", type=Size(), metavar="SIZE", help="Keep the latest used, up to this size, e.g. 10G.")
def clear_command(older_than: float | None, keep_bytes: int | None) -> None:
    """Remove files that no run uses; all of them, or those that the options choose."""
    from codo.data.cache_care import clear, entries

    _report(*clear(entries(), older_than=older_than, keep_bytes=keep_bytes))


def _report(removed: list[Entry], used: list[Entry]) -> None:
    from codo.runs.caching import bytes_text

    for entry in used:
        click.echo(f"kept, a run uses it: {_line(entry)}")
    click.echo(f"removed {len(removed)} files, {bytes_text(sum(e.bytes for e in removed))}")


def _line(entry: Entry) -> str:
    from codo.runs.caching import bytes_text

    used = "in use" if entry.held else f"used {entry.idle_days:.0f} days ago" if entry.idle_days >= 1 else "used today"
    return f"{bytes_text(entry.bytes):>10}  {used:16}  {entry.file}  {entry.content}"
