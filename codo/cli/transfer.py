"""`codo transfer`: fine-tune a detector from pretrained weights and evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from codo.cli.options import read_seeds
from codo.cli.told import number, print_curve, print_training, warn_of_fresh, warn_of_misfits
from codo.config import TRANSFER_PRESETS
from codo.config.schedules import SCHEDULES, schedule_fields
from codo.config.sections import Precision
from codo.config.transfer import DETECTORS, GROUPS, FrozenNorm, Norm
from codo.errors import CodoError

if TYPE_CHECKING:
    from codo.jobs.transfer.run import Start, TransferResult

_FLAGS = {
    "detector": "detector",
    "weights": "weights",
    "load": "load",
    "data": "data.root",
    "train_json": "data.train_json",
    "val_json": "data.val_json",
    "images": "data.images",
    "val_images": "data.val_images",
    "fraction": "data.fraction",
    "epochs": "optim.epochs",
    "batch_size": "optim.batch_size",
    "norm": "norm",
    "freeze": "freeze",
    "freeze_stages": "freeze_stages",
    "frozen_norm": "frozen_norm",
    "seed": "seed",
    "device": "run.device",
    "precision": "run.precision",
}


@click.command(name="transfer")
@click.option(
    "--detector",
    metavar="NAME",
    help=f"{', '.join(DETECTORS)}, or your own, module:Name or file.py:Name.  [default: faster_rcnn]",
)
@click.option("--weights", metavar="RUN|FILE|none", help="Pretraining run, weights file, or none (the default).")
@click.option("--load", metavar="PARTS", help="Which of backbone,fpn,box_head to load; the others stay fresh.")
@click.option("--like", metavar="RUN", help="With weights none or of others: take the architecture of this run.")
@click.option("--data", metavar="DIR", help="COCO-format data set; the built-in sample data if left out.")
@click.option("--train-json", metavar="FILE", help="Training annotations, in place of those in --data.")
@click.option("--val-json", metavar="FILE", help="Annotations to evaluate on, in place of those in --data.")
@click.option("--images", metavar="DIR", help="Folder of the images, in place of those in --data.")
@click.option("--val-images", metavar="DIR", help="Folder of the images to evaluate on, where it is another one.")
@click.option("--fraction", type=float, help="Share of the training images, drawn with the seed.")
@click.option("--preset", type=click.Choice(list(TRANSFER_PRESETS)), help="Named settings.  [default: small]")
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Settings as YAML.")
@click.option("--set", "sets", metavar="A.B=C", multiple=True, help="Any field; may be repeated.")
@click.option("--epochs", type=int, help="Length in passes over the training images.")
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), help="Length in steps, scaled to the batch size.")
@click.option("--batch-size", type=int, help="Images a step.")
@click.option("--norm", type=click.Choice(get_args(Norm)), help="How norms train, or GroupNorm.")
@click.option(
    "--protocol",
    type=click.Choice(["probe", "finetune"]),
    help="probe: backbone, FPN and box head are frozen, loaded or not; finetune: nothing is.",
)
@click.option("--freeze", metavar="PARTS", help="Which of backbone,fpn,box_head are not trained.")
@click.option("--freeze-stages", type=int, metavar="N", help="Stages of the backbone that are not trained, 1 to 5.")
@click.option("--frozen-norm", type=click.Choice(get_args(FrozenNorm)), help="Statistics that frozen batch norms use.")
@click.option("--seed", type=int, help="Fresh weights, order, flips, sampling and the share of --fraction.")
@click.option("--seeds", metavar="N,N,...", help="A run each, in OUT/seed-N; mean and deviation; again: goes on.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Arithmetic of the convolutions.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Run folder.  [default: runs/transfer-N]")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Continue this run, with its config.")
@click.option("--dry-run", is_flag=True, help="Load data and weights, show the config; train nothing.")
def transfer_command(
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    schedule: str | None,
    protocol: str | None,
    seeds: str | None,
    like: str | None,
    **options: Any,
) -> None:
    """Train a detector from pretrained weights on a labelled data set, and print its COCO metrics."""
    if options["epochs"] and schedule:
        raise click.UsageError("--epochs and --schedule both set the length; give one of them")
    if protocol and options["freeze"] is not None:
        raise click.UsageError("--protocol and --freeze both say what is frozen; give one of them")
    chosen = read_seeds(seeds) if seeds is not None else None
    if chosen and (options["seed"] is not None or resume or out is None):
        raise click.UsageError(
            "--seeds goes with --out, where a second call finds its runs; not with --seed or --resume"
        )
    if resume and (preset or file or sets or out or dry_run or protocol or like):
        raise click.UsageError(
            "--resume goes on with the run's own config and folder: only --epochs, --schedule, --device, --precision "
            "and, where the data moved, --data and the like go with it"
        )

    from codo.jobs.transfer import load_transfer_config, transfer
    from codo.jobs.transfer import resume as resume_run

    options["load"] = [part.strip() for part in options["load"].split(",")] if options["load"] else None
    if options["freeze"] is not None:
        options["freeze"] = [part.strip() for part in options["freeze"].split(",") if part.strip()]
    elif protocol:
        options["freeze"] = list(GROUPS) if protocol == "probe" else []
    flags = {field: options[name] for name, field in _FLAGS.items()}
    if resume:
        flags["optim.iterations"] = _resumed_length(resume, options["epochs"], schedule)
        _print_result(resume_run(resume, flags, _print_start))
        return
    config = load_transfer_config(preset=preset, file=file, flags=flags, sets=sets, schedule=schedule, like=like)
    if dry_run:
        _dry_run(config)
    elif chosen:
        assert out is not None
        _run_seeds(config, chosen, out)
    else:
        _print_result(transfer(config, out, _print_start))


def _resumed_length(run: Path, epochs: int | None, schedule: str | None) -> int | None:
    """Count the steps of a schedule at the batch size of an existing run; refuse a length of the run's other kind."""
    if epochs is None and schedule is None:
        return None
    from codo.config import TransferConfig
    from codo.config.load import load_run_config

    optim = load_run_config(TransferConfig, run).optim
    if schedule is None:
        if optim.iterations is not None:
            raise CodoError(f"--resume {run}: the run's length is in steps ({optim.iterations}); use --schedule NAME")
        return None
    if optim.epochs is not None:
        raise CodoError(f"--resume {run}: the run's length is in epochs ({optim.epochs}); use --epochs N")
    return schedule_fields(schedule, optim.batch_size)["optim.iterations"]


def _run_seeds(config: Any, seeds: list[int], out: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from codo.jobs.transfer.seeds import transfer_seeds
    from codo.runs.console import console

    def say(text: str) -> None:
        console.print(text, markup=False)

    result = transfer_seeds(config, seeds, out, _print_start, say)
    found = result.summary
    title = f"{len(seeds)} seeds on {found['data']} val"
    table = Table("", "mean", "std", "n", title=escape(title), title_justify="left")
    rows = found["metrics"] | {f"mask {name}": row for name, row in found.get("mask_metrics", {}).items()}
    for name, row in (rows | {"curve area": found["curve_area"]}).items():
        table.add_row(name, number(row["mean"]), "-" if row["std"] is None else f"{row['std']:.2f}", str(row["n"]))
    console.print(table)
    console.print(f"written to {result.path / 'seeds.json'}", markup=False)


def _dry_run(config: Any) -> None:
    from codo.config import dump_yaml
    from codo.jobs.transfer.data import load_data
    from codo.jobs.transfer.hardware import hardware_of
    from codo.jobs.transfer.run import load_detector
    from codo.jobs.transfer.schedule import describe_training
    from codo.runs.console import console
    from codo.runs.world import World

    world = World.of_environment()
    if world.size > 1:
        raise CodoError("--dry-run: of one process; leave torchrun out")
    hardware = hardware_of(config, world)
    data = load_data(config)
    detector, loaded = load_detector(config, data)
    console.print(dump_yaml(config), markup=False)
    console.print(f"hardware: {hardware.describe()}", markup=False)
    _print_data(data.facts)
    _print_loaded(loaded)
    training = describe_training(config, detector, len(data.train.images))
    print_training(config.protocol, training)
    warn_of_fresh(loaded, training)
    console.print("dry run, nothing was trained")


def _print_start(start: Start) -> None:
    from codo.runs.console import console

    console.print(f"run: {start.path}", markup=False)
    console.print(f"hardware: {start.hardware}", markup=False)
    _print_data(start.data)
    _print_loaded(start.loaded)
    print_training(start.protocol, start.training)
    warn_of_fresh(start.loaded, start.training)
    if start.features:
        console.print(start.features, markup=False)
    if start.resumed_at:
        console.print(f"resumed after step {start.resumed_at}")


def _print_data(facts: dict[str, Any]) -> None:
    from codo.runs.console import console, warn

    layout = f" ({facts['layout']})" if facts.get("layout") else ""
    console.print(
        f"data: {facts['name']}{layout}, {facts['train_images']} training images ({facts['train_boxes']} boxes, "
        f"{facts['train_images_without_boxes']} images without), {facts['val_images']} to evaluate on, "
        f"{facts['classes']} classes",
        markup=False,
    )
    if facts.get("val_boxes") == 0:
        warn("the images to evaluate on have no boxes: there will be no AP (-), and no best weights")
    if both := facts["val_images_trained_on"]:
        warn(f"{both} of the {facts['val_images']} images to evaluate on are among the training images")
    for split, reasons in facts["skipped"].items():
        for reason, count in reasons.items():
            warn(f"{split}: {count} x {reason}")


def _print_loaded(loaded: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from codo.runs.console import console

    if loaded["weights"]["source"] == "none":
        console.print("weights: none, every tensor is fresh")
        return
    title = f"weights: {escape(loaded['weights']['source'])} ({loaded['weights']['kind']})"
    kinds = ("matched", "missing", "unexpected", "reshaped", "left_out")
    table = Table("tensors", *(kind.replace("_", " ") for kind in kinds), title=title, title_justify="left")
    for name, group in loaded["groups"].items():
        table.add_row(name, *(str(group["counts"][kind]) for kind in kinds))
    console.print(table)
    if loaded["ignored"]:
        console.print(f"{len(loaded['ignored'])} tensors of the file belong to no group that transfers: left out")
    console.print(loaded["proof"]["text"], markup=False)
    warn_of_misfits(loaded)


def _print_result(result: TransferResult) -> None:
    from codo.runs.console import console, duration, warn

    summary = result.summary
    unreadable = summary["unreadable_images"]
    if unreadable["val"]:
        example = unreadable["val"][0]
        warn(f"{len(unreadable['val'])} images to evaluate on cannot be used and were left out, e.g. {example}")
    if unreadable["train"]:
        warn(f"{unreadable['train']} training images cannot be used; others took their place")
    print_metrics(summary, f"{summary['data']['name']} val")
    print_curve(summary)
    console.print(f"{summary['steps']} steps, training took {duration(summary['train_seconds'])}")
    console.print(f"written to {result.path}", markup=False)


def print_metrics(found: dict[str, Any], where: str) -> None:
    """Print the twelve numbers of boxes, and of masks, what the errors cost, and AP per class."""
    from rich.markup import escape
    from rich.table import Table

    from codo.runs.console import console

    sides = {"box": ("metrics", "errors"), "mask": ("mask_metrics", "mask_errors")}
    for side, (metrics, _) in sides.items():
        if metrics in found:
            title = f"COCO {side} metrics on {escape(where)}"
            table = Table(*found[metrics], title=title, title_justify="left", padding=0)  # twelve columns in 80
            table.add_row(*map(number, found[metrics].values()))
            console.print(table)
    costs = {side: found[errors] for side, (_, errors) in sides.items() if found.get(errors)}
    if costs:
        table = Table("", *costs["box"], title="AP50 that mending each kind of error would add", title_justify="left")
        for side, errors in costs.items():
            table.add_row(side, *map(number, errors.values()))
        console.print(table)
    columns = {"AP": "AP", "mask_AP": "mask AP"} if "mask_metrics" in found else {"AP": "AP"}
    classes = Table("class", *columns.values(), title="AP per class", title_justify="left")
    for entry in found["per_class"]:
        classes.add_row(escape(entry["name"]), *(number(entry[column]) for column in columns))
    console.print(classes)
