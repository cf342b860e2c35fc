"""The export job: a run's weights in another library's file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo.config.transfer import ONE_STAGE
from codo.errors import CodoError
from codo.export.contents import Contents, read_contents
from codo.weights.keys import GROUPS, group_of

FORMATS = ("torchvision", "timm", "detectron2", "mmdetection")
"""The libraries; each is a module of this package with `SUFFIXES`, `names`, `write` and `usage`."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file, or timm's folder.
        groups: `backbone`, `fpn`, `box_head`, and `detector` (RPN, predictors): name in the run -> name in the file.
        left_out: the run's tensors that are not in the file.
        fresh: the file's tensors that are not of the run.
        notes: what the user should know of it.
        usage: code or config of the other library that loads it.

    Example:
        >>> Exported(Path("codo.pkl"), {}, [], [], [], "").path.name
        'codo.pkl'
    """

    path: Path
    groups: dict[str, dict[str, str]]
    left_out: list[str]
    fresh: list[str]
    notes: list[str]
    usage: str


def export_run(run: str | Path, format: str, out: str | Path, *, force: bool = False, best: bool = False) -> Exported:
    """Write the weights of a pretraining or transfer run as another library reads them.

    Args:
        run: the run folder, or its weights.safetensors.
        format: `torchvision`, `timm`, `detectron2` or `mmdetection`.
        out: the file to write; for timm a folder.
        force: whether to overwrite.
        best: take best.safetensors, the detector of the highest AP; where that was the end there is no such file.

    Raises:
        CodoError: no such run; a backbone that the library has no names for; `out` exists, or has the wrong ending.

    Example:
        >>> done = codo.export_run("runs/first", "detectron2", "codo.pkl")  # doctest: +SKIP
        >>> print(done.usage)  # doctest: +SKIP
        MODEL:
        ...
    """
    if format not in FORMATS:
        raise CodoError(f"export: there is no format {format!r}; the formats are {', '.join(FORMATS)}")
    library: Any = importlib.import_module(f"codo.export.{format}")
    out = Path(out)
    if out.suffix not in library.SUFFIXES and library.SUFFIXES != ("",):
        raise CodoError(
            f"export: {out} should end in {' or '.join(library.SUFFIXES)}, by which {format} tells its kind"
        )
    if library.SUFFIXES == ("",) and out.is_file():
        raise CodoError(f"export: {out} is a file; for {format} name a folder")
    if out.exists() and (out.is_file() or library.SUFFIXES != ("",) or any(out.iterdir())) and not force:
        raise CodoError(f"export: {out} exists already; name another, or overwrite it with --force")
    contents = read_contents(str(run), best)
    names: dict[str, str] = library.names(contents)
    if contents.own_box_head is not None:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith(GROUPS["box_head"])}
    tensors = contents.state | contents.rest
    fresh = library.write(out, {theirs: tensors[ours] for ours, theirs in names.items()}, contents)
    groups: dict[str, dict[str, str]] = {group: {} for group in (*GROUPS, "detector")}
    for ours, theirs in names.items():
        groups[(group_of(ours) if ours in contents.state else None) or "detector"][ours] = theirs
    left_out = sorted(tensors.keys() - names.keys())
    notes = _notes(contents, best)
    if format == "torchvision" and groups["box_head"] and (contents.sampling_ratio, contents.aligned) != (2, False):
        notes.append(
            f"the box head was trained behind a RoIAlign of sampling_ratio {contents.sampling_ratio} and aligned "
            f"{contents.aligned}; torchvision's detectors pool by 2 and False, so that it sees other features there"
        )
    return Exported(out, groups, left_out, fresh, notes, library.usage(out, contents))


def _notes(contents: Contents, best: bool) -> list[str]:
    """Say which weights were taken, what is not in the run, or not in the file, and why."""
    notes = [f"the weights are those of {contents.file.name}"] if best else []
    if not contents.has_fpn:
        notes.append("the run was without alignment: it has no FPN and no box head, the backbone is all there is")
    if contents.detector in ONE_STAGE:
        notes.append(f"a {contents.detector} has no P2 and no box head: of the FPN there is P3-P5")
    elif contents.own_box_head is not None:
        notes.append(f"the box head is your own ({contents.own_box_head}): left out")
    elif contents.has_fpn and "box head" in contents.lacking:
        notes.append("the run has no box head as pretraining has it")
    return notes
