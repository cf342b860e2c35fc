"""`codo presets` and `codo diff`."""

from __future__ import annotations

import click


@click.command("presets", short_help="List the presets, or print one with its sources.")
@click.argument("name", required=False)
def presets_command(name: str | None) -> None:
    """List the presets of `codo pretrain`; or print the preset NAME as YAML, with the source of every value.

    What is printed is a config file: `codo presets insloc > my.yaml`, edit it, `codo pretrain --config my.yaml`.
    """
    from codo.config.explain import explain_preset
    from codo.config.presets import ALIASES, PRESETS

    if name is not None:
        click.echo(explain_preset(name), nl=False)
        return
    width = max(map(len, PRESETS))
    for preset, what in PRESETS.items():
        click.echo(f"{preset:{width}}  {what.about}")
    for short, preset in ALIASES.items():
        click.echo(f"{short:{width}}  short for {preset}, the default")


@click.command("diff", short_help="Show in what two presets, configs or runs differ.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
def diff_command(a: str, b: str) -> None:
    """Show the fields in which A and B differ. Each is a preset, a YAML file or the folder of a run.

    Both are of pretraining, or both of transfer.
    """
    import json

    from rich.markup import escape
    from rich.table import Table

    from codo.config.explain import diff
    from codo.runs.console import console

    found = diff(a, b)
    if not found:
        console.print(f"{a} and {b} are the same", markup=False)
        return
    table = Table("field", escape(a), escape(b))
    for field, values in found.items():
        table.add_row(field, *(escape(json.dumps(value)) for value in values))
    console.print(table)
