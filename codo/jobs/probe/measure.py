"""The probes of one encoder: every measure of every representation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from codo.augment import normalise
from codo.backbones import LEVELS
from codo.jobs.probe.bench import Bench, square
from codo.jobs.probe.features import COMMON, Encoder, embed, frozen, looks_at_the_box, representations
from codo.jobs.probe.images import take
from codo.measures import (
    alignment,
    box_sensitivity,
    effective_rank,
    knn_accuracy,
    majority_share,
    retrieval,
    uniformity,
    variance_shares,
)
from codo.measures.variance import chance_ratio
from codo.model.statistics import modes_kept, renewed

BATCH = 64
"""Images embedded at once."""


@dataclass(frozen=True)
class Probes:
    """Figures of one encoder.

    Attributes:
        values: name -> value, NaN where undefined. Without prefix: of the representation that every method has; of the
            others `REPRESENTATION/NAME`.
        chance: name -> what an embedding that knows nothing scores; lacks those that have no such level.
        curves: representation -> similarity by IoU and shares of variance.
    """

    values: dict[str, float]
    chance: dict[str, float]
    curves: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a bench.

    Attributes:
        composites: representation -> `(N, M, d)`.
        views: representation -> `(N, M, d)`, of another view of each instance.
        jittered: representation -> `(N, J, d)`, of instance i on background i mod M; lacks those without a box.
    """

    composites: dict[str, Tensor]
    views: dict[str, Tensor]
    jittered: dict[str, Tensor]


def embed_bench(
    encoder: Encoder, bench: Bench, device: torch.device, wanted: Collection[str] | None = None
) -> Embedded:
    """Embed all composites, and the jittered boxes.

    Args:
        encoder: of any mode; it is held in evaluation mode and put back.
        bench: the composites.
        device: where the encoder is.
        wanted: representations; None takes all that it has.
    """
    names = list(wanted) if wanted is not None else representations(encoder)
    boxed = [name for name in names if looks_at_the_box(encoder, name)]
    number = len(bench.backgrounds)
    rows: dict[str, dict[str, list[Tensor]]] = {
        "composites": {name: [] for name in names},
        "views": {name: [] for name in names},
        "jittered": {name: [] for name in boxed},
    }

    def run(patches: Tensor, boxes: Tensor, owners: Tensor) -> dict[str, Tensor]:
        pictures = bench.composites(patches).flatten(0, 1)
        boxes = torch.cat([bench.box.expand(len(pictures), 4), boxes])
        owners = torch.cat([torch.arange(len(pictures)), owners])
        found = embed(encoder, prepared(pictures, device), boxes.to(device), owners.to(device), names)
        return {name: values.cpu() for name, values in found.items()}

    with frozen(encoder):
        for part in torch.arange(len(bench.patches)).split(max(1, BATCH // number)):
            images, tries = len(part) * number, bench.jittered[part].flatten(0, 1)
            probed = torch.arange(len(part)) * number + part % number  # instance i on background i mod M
            owners = probed.repeat_interleave(bench.jittered.shape[1])
            for name, values in run(bench.patches[part], tries, owners).items():
                rows["composites"][name].append(values[:images].unflatten(0, (-1, number)))
                if name in boxed:
                    rows["jittered"][name].append(values[images:].unflatten(0, (len(part), -1)))
            for name, values in run(bench.views[part], tries[:0], owners[:0]).items():
                rows["views"][name].append(values.unflatten(0, (-1, number)))
    return Embedded(**{kind: {n: torch.cat(parts) for n, parts in found.items()} for kind, found in rows.items()})


def settle_norms(encoder: Encoder, bench: Bench, device: torch.device) -> None:
    """Give an untrained encoder's batch norms the statistics of the composites.

    Fresh ones normalise nothing, which no trained encoder is compared with fairly: the anchor is random weights with
    the statistics that such weights have.

    Args:
        encoder: on `device`; its running statistics are replaced.
        bench: the composites, every instance on every background.
        device: where the encoder is.
    """
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with modes_kept(encoder), renewed(norms), torch.no_grad():
        encoder.train()
        for part in bench.patches.split(max(2, BATCH // len(bench.backgrounds))):
            pictures = bench.composites(part).flatten(0, 1)
            encoder(prepared(pictures, device), bench.box.to(device).expand(len(LEVELS), len(pictures), 4))


def prepared(pictures: Tensor, device: torch.device) -> Tensor:
    """Make `(B, S, S, 3)` uint8 what the encoder takes: `(B, 3, S, S)`, normalised, channels last."""
    return normalise(pictures.to(device).permute(0, 3, 1, 2).float() / 255)


def measure(embedded: Embedded, bench: Bench) -> Probes:
    """Take every measure that needs no label.

    Args:
        embedded: from `embed_bench`.
        bench: what was embedded.
    """
    values: dict[str, float] = {}
    chance: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for name, rows in embedded.composites.items():
        prefix = "" if name == COMMON else f"{name}/"
        count, number, _ = rows.shape
        found: dict[str, tuple[float, float | None]] = {}
        for view, gallery in {"": rows, "view_": embedded.views[name]}.items():
            for variant in ("easy", "hard"):
                r = retrieval(rows, hard=variant == "hard", gallery=gallery)
                found[f"{view}{variant}_top1"] = r.top1, r.chance_top1
                found[f"{view}{variant}_map"] = r.mean_ap, r.chance_ap
        variance = variance_shares(rows)
        found["variance_ratio"] = variance.ratio, chance_ratio(count, number)
        # Each draw has every instance once, on backgrounds that go round.
        draws = [rows[torch.arange(count), (torch.arange(count) + shift) % number] for shift in range(number)]
        found["alignment"] = alignment(rows), sum(_unrelated(draw) for draw in draws) / number
        found["uniformity"] = sum(uniformity(draw) for draw in draws) / number, None
        found["effective_rank"] = effective_rank(F.normalize(rows.flatten(0, 1), dim=1)), None
        curves[name] = {
            "variance_shares": dict(zip(("instance", "background", "interaction"), variance[1:], strict=True))
        }
        if name in embedded.jittered:
            exact = rows[torch.arange(count), torch.arange(count) % number]
            box = box_sensitivity(exact, embedded.jittered[name], bench.iou)
            found["box_slope"] = box.slope, 0.0
            found["box_rank_correlation"] = box.rank_correlation, 0.0
            keys = ("iou_from", "iou_to", "similarity", "boxes")
            curves[name]["box"] = [dict(zip(keys, point, strict=True)) for point in box.curve]
        values |= {prefix + key: value for key, (value, _) in found.items()}
        chance |= {prefix + key: level for key, (_, level) in found.items() if level is not None}
    return Probes(values, chance, curves)


def _unrelated(rows: Tensor) -> float:
    """Compute the mean squared distance of different images: the alignment that chance would give."""
    unit = F.normalize(rows.double(), dim=1)
    return float(torch.pdist(unit).square().mean())


def measure_labels(
    encoder: Encoder, paths: list[Path], labels: dict[Path, str], limit: int, canvas: int, device: torch.device
) -> tuple[Probes, int]:
    """Take the accuracy of the nearest neighbours.

    The central square of an image fills the canvas, and its box is the canvas.

    Args:
        encoder: of any mode.
        paths: images in the order in which they are taken.
        labels: of some of them.
        limit: take at most so many.
        canvas: S in pixels.
        device: where the encoder is.

    Returns:
        The figures, and how many images they are of; without figures where under 2 are labelled.
    """
    labelled = [path for path in paths if path in labels][:limit]
    names = representations(encoder)
    if len(labelled) < 2:
        return Probes({}, {}, {}), len(labelled)
    files, pixels = take(labelled, len(labelled), lambda path: square(path, canvas), least=2)
    kinds = {kind: i for i, kind in enumerate(sorted({labels[path] for path in files}))}
    targets = torch.tensor([kinds[labels[path]] for path in files])
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with frozen(encoder):
        for part in torch.from_numpy(pixels).split(BATCH):
            box = torch.tensor([0.0, 0, canvas, canvas], device=device).expand(len(part), 4)
            owners = torch.arange(len(part), device=device)
            for name, found in embed(encoder, prepared(part, device), box, owners, names).items():
                rows[name].append(found.cpu())
    prefixes = {name: "" if name == COMMON else f"{name}/" for name in names}
    values = {f"{prefixes[name]}knn": knn_accuracy(torch.cat(rows[name]), targets) for name in names}
    return Probes(values, dict.fromkeys(values, majority_share(targets)), {}), len(files)
