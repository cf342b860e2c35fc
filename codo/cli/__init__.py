"""The `codo` command. Commands are imported when they are asked for, and torch only when one runs."""

from __future__ import annotations

import errno
import importlib
import io
import os
import shlex
import sys
from typing import Any

import click

from codo._version import __version__
from codo.errors import nearest

COMMANDS = {
    "ablate": ("codo.cli.ablate:ablate_command", "Run a grid of rows and seeds; report which component is worth what."),
    "bench": ("codo.cli.bench:bench_command", "Measure what limits a config here: loader, step or evaluation."),
    "cache": ("codo.cli.cache:cache_command", "List, check or clear the decoded images that runs keep."),
    "compare": ("codo.cli.compare:compare_command", "Put transfer runs side by side; refuse different protocols."),
    "demo": ("codo.cli.demo:demo_command", "Everything once, on the built-in sample data."),
    "diff": ("codo.cli.presets:diff_command", "Show in what two presets, configs or runs differ."),
    "evaluate": ("codo.cli.evaluate:evaluate_command", "Compute the COCO metrics of a finished transfer run."),
    "export": ("codo.cli.export:export_command", "Write a run's weights as other libraries read them."),
    "predict": ("codo.cli.evaluate:predict_command", "Find objects in pictures with a finished transfer run."),
    "presets": ("codo.cli.presets:presets_command", "List the presets, or print one with its sources."),
    "pretrain": ("codo.cli.pretrain:pretrain_command", "Pretrain backbone, FPN and box head without labels."),
    "preview": ("codo.cli.preview:preview_command", "Draw what pretraining will see: a contact sheet of samples."),
    "report": ("codo.cli.report:report_command", "Write a grid's report anew from its results.json."),
    "probe": ("codo.cli.probe:probe_command", "Measure a pretrained encoder without labels or a detector."),
    "sample-data": ("codo.cli.sample_data:sample_data_command", "Write the built-in, rendered sample data set."),
    "transfer": ("codo.cli.transfer:transfer_command", "Train a detector from pretrained weights and evaluate it."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line, and imports one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolve a command, with a suggestion for a misspelt one."""
        near = nearest(args[0], COMMANDS)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="codo")
def cli() -> None:
    """Pretrain detectors by contrastive learning with downstream background invariance."""


def _who() -> str:
    """Say which of several processes (torchrun) speaks."""
    rank = os.environ.get("RANK")
    return f"process {rank}: " if rank is not None else ""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2."""
    from codo.errors import CodoError, Interrupted

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need be no text, terminals no UTF-8
    try:
        code = cli.main(arguments, prog_name="codo", standalone_mode=False)
    except CodoError as error:
        click.echo(f"{_who()}Error: {error}", err=True)
        code = 2
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            given = shlex.join(["codo", *(sys.argv[1:] if arguments is None else arguments)])
            click.echo(f"{stopped}; go on with: {given}" if stopped.command is None else str(stopped), err=True)
        code = stopped.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = 130
    except BrokenPipeError:  # `codo ... | head`
        sys.stderr.close()
        code = 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a path that was given; wherever it is looked at first
            raise
        click.echo(f"{_who()}Error: {error.filename}: {error.strerror}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
