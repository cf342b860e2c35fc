"""`codo evaluate` and `codo predict`: a finished transfer run, used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from codo.config.sections import Precision

_DEVICE = click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps; else as the run was.")
_PRECISION = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Arithmetic of the convolutions; else as the run was.",
)
_BEST = click.option(
    "--best",
    is_flag=True,
    help="Take best.safetensors, of the highest AP, where there is one, not the end of training.",
)


@click.command(name="evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR", help="COCO-format data set, its validation split; the run's own if left out.")
@click.option("--json", "annotations", metavar="FILE", help="Annotations, in place of those in --data.")
@click.option("--images", metavar="DIR", help="Folder of their images, in place of that in --data.")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Write evaluation.json and predictions.json there."
)
@_BEST
@_DEVICE
@_PRECISION
def evaluate_command(
    run: Path,
    data: str | None,
    annotations: str | None,
    images: str | None,
    out: Path | None,
    best: bool,
    device: str | None,
    precision: str | None,
) -> None:
    """Compute the COCO metrics of RUN, a finished transfer run, on any data set that has its categories."""
    from codo.jobs.transfer.evaluate_run import evaluate_run
    from codo.runs.console import console

    evaluate_run(
        run,
        data=data,
        annotations=annotations,
        images=images,
        out=out,
        best=best,
        changes={"run.device": device, "run.precision": precision},
        on_found=_print_evaluation,
    )
    if out is not None:
        console.print(f"written to {out}", markup=False)


def _print_evaluation(found: dict[str, Any]) -> None:
    from codo.cli.transfer import print_metrics
    from codo.runs.console import console, warn

    console.print(f"weights: {found['weights']}", markup=False)
    facts = found["data"]
    console.print(
        f"{facts['name']}, {facts['annotations']}: {facts['images']} images, {facts['boxes']} boxes, "
        f"{facts['classes']} classes; masks: {found['masks']}",
        markup=False,
    )
    for reason, count in facts["skipped"].items():
        warn(f"{count} x {reason}")
    if facts["classes_absent"]:
        warn(f"the data set lacks {len(facts['classes_absent'])} of the run's classes; detections of them do not count")
    if found["unreadable_images"]:
        unreadable = found["unreadable_images"]
        warn(f"{len(unreadable)} images cannot be used and were left out, e.g. {unreadable[0]}")
    print_metrics(found, facts["name"])


@click.command(name="predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="New folder.  [default: runs/predict-N]")
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Detections below it are left out.",
)
@_BEST
@_DEVICE
@_PRECISION
def predict_command(
    run: Path,
    images: tuple[Path, ...],
    out: Path | None,
    score_threshold: float,
    best: bool,
    device: str | None,
    precision: str | None,
) -> None:
    """Find objects in IMAGES (files or folders) with RUN, a finished transfer run: pictures, and COCO results."""
    from codo.jobs.transfer.predict import predict
    from codo.runs.console import console

    changes = {"run.device": device, "run.precision": precision}
    found = predict(run, images, out=out, score_threshold=score_threshold, best=best, changes=changes)
    console.print(f"weights: {found.weights}", markup=False)
    console.print(
        f"{found.images} images, {len(found.results)} detections of score {score_threshold:g} or more; "
        f"{len(found.unreadable)} images cannot be read",
        markup=False,
    )
    console.print(f"written to {found.path}: pictures/, predictions.json, images.json", markup=False)
