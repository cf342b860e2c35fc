"""The probe job: from a pretraining run to figures."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codo._version import __version__
from codo.config.load import fingerprint, load_run_config
from codo.config.pretrain import PretrainConfig
from codo.data.files import data_fingerprint
from codo.errors import CodoError
from codo.jobs.pretrain.method import Method
from codo.jobs.pretrain.preview import check_png, write_png
from codo.jobs.pretrain.probing import probe_images
from codo.jobs.probe.bench import PATCH_SHARE, Bench
from codo.jobs.probe.features import MEANING, Encoder
from codo.jobs.probe.images import find_manifest, read_labels
from codo.jobs.probe.measure import embed_bench, measure, measure_labels, settle_norms
from codo.jobs.probe.sheet import draw_sheet
from codo.runs.console import warn
from codo.runs.files import check_place
from codo.runs.hardware import Hardware, available_cores
from codo.runs.record import RunFolder, finite
from codo.runs.weights_file import read_weights

KNN_IMAGES = 1000
"""Labelled images of the kNN accuracy, at most."""


def probe(
    run_folder: str | Path | None,
    *,
    config: PretrainConfig | None = None,
    foregrounds: str | Path | None = None,
    backgrounds: str | Path | None = None,
    manifest: str | Path | None = None,
    instances: int | None = None,
    backgrounds_per_instance: int | None = None,
    knn_images: int = KNN_IMAGES,
    seed: int = 0,
    canvas: int | None = None,
    device: str = "auto",
    sheet: str | Path | None = None,
    on_found: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure what a pretrained encoder's embeddings are worth, without a detector.

    Args:
        run_folder: of a finished pretraining; None probes the untrained encoder of `config`.
        config: without a run: what to build.
        foregrounds: folder of object-centric images in place of the run's own.
        backgrounds: COCO-format data set or folder in place of the run's own.
        manifest: CSV with `file` and `label`, for the kNN accuracy; by default `manifest.csv` in or beside the folder
            of foregrounds, where there is one.
        instances: N; None takes 64, or as many as there are.
        backgrounds_per_instance: M; None takes 8, or as many as there are.
        knn_images: labelled images at most.
        seed: of the choice of images and of the jittered boxes.
        canvas: side in pixels, a multiple of 32; None takes the run's. Only figures of one canvas can be compared.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        sheet: draw queries and their nearest neighbours into this PNG.
        on_found: told what is returned before the sheet is written, which a full disk may prevent.

    Returns:
        `probes` and `chance` (name -> value), `curves`, `settings`, `held_out`, `fingerprint`; JSON values, None for
        what is undefined. `settings["images"]` is the same where the images are.

    Raises:
        CodoError: no finished run, images that cannot be used or are too few, a manifest that is none.

    Example:
        >>> import codo
        >>> found = codo.probe("runs/first")  # doctest: +SKIP
        >>> found["probes"]["hard_top1"], found["chance"]["hard_top1"]  # doctest: +SKIP
        (0.41, 0.1)
    """
    places = (run_folder, foregrounds, backgrounds, manifest, sheet)
    run_folder, foregrounds, backgrounds, manifest, sheet = (p if p is None else Path(p) for p in places)
    if sheet is not None:
        check_png("--sheet", sheet)
        check_place(sheet)
    if canvas is not None and (canvas < 64 or canvas % 32):
        raise CodoError(f"--canvas {canvas}: at least 64 and a multiple of 32, as the strides of the stages are")
    config, encoder, name = _encoder(run_folder, config)
    threads = config.run.threads if config.run.threads in range(1, available_cores() + 1) else "auto"
    here = {"device": device, "precision": "fp32", "workers": 0, "threads": threads}  # the run may be another machine's
    hardware = Hardware.resolve(config.run.model_copy(update=here), heavy_loading=False)
    hardware.apply()
    side = canvas or config.canvas
    images = probe_images(
        config,
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        instances=instances,
        backgrounds_per_instance=backgrounds_per_instance,
        seed=seed,
    )
    labels = _labels(manifest, images.folder)
    bench = Bench.build(images, side, seed)
    encoder.to(hardware.device)
    if run_folder is None:
        settle_norms(encoder, bench, hardware.device)
    embedded = embed_bench(encoder, bench, hardware.device)
    found = measure(embedded, bench)
    labelled, count = measure_labels(encoder, images.foregrounds, labels, knn_images, side, hardware.device)
    settings = {
        "weights": name,
        "run": RunFolder.open(run_folder).environment()["fingerprint"] if run_folder is not None else None,
        "config": fingerprint(config),
        "seed": seed,
        "canvas": side,
        "patch_share": PATCH_SHARE,
        "instances": images.instances,
        "backgrounds_per_instance": images.backgrounds_per_instance,
        "knn_images": count,
        **images.described,
        "images": _images_fingerprint(bench),
        "representations": {key: MEANING[key] for key in embedded.composites},
        "codo": __version__,
    }
    figures = finite(
        {
            "probes": found.values | labelled.values,
            "chance": found.chance | labelled.chance,
            "curves": found.curves,
            "settings": settings,
            "held_out": images.held_out,
            "fingerprint": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16],
        }
    )
    if on_found:
        on_found(figures)
    if sheet is not None:
        write_png(sheet, draw_sheet(embedded, bench))
    return figures


def _encoder(run_folder: Path | None, config: PretrainConfig | None) -> tuple[PretrainConfig, Encoder, str]:
    """Load a run's query encoder, or build an untrained one."""
    if run_folder is None:
        if config is None:
            raise ValueError("either a run folder or a config is needed")
        return config, Method(config).query_encoder, "none"
    if config is not None:
        raise ValueError("a run has its own config")
    run = RunFolder.open(run_folder)
    config = load_run_config(PretrainConfig, run_folder)
    if not run.complete:
        raise CodoError(
            f"{run_folder} is not complete; finish it with: codo pretrain --resume {shlex.quote(str(run_folder))}"
        )
    handed = sorted({"losses", "projector", "box_head", "backbone"} & run.environment("parts")["parts"].keys())
    if handed:
        raise CodoError(
            f"{run_folder} was made with parts handed over from Python ({', '.join(handed)}), which cannot be built "
            "again; name them in the config by their dotted path (docs/custom-parts.md)"
        )
    encoder = Method(config).query_encoder
    state, _ = read_weights(run_folder / "weights.safetensors")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise CodoError(f"{run_folder}: the weights are not those of its config.yaml: {error}") from error
    return config, encoder, run_folder.resolve().name


def _labels(given: Path | None, folder: Path) -> dict[Path, str]:
    """Read the labels of the images; a manifest that was found, not given, need not be one of theirs."""
    manifest = given or find_manifest(folder)
    if manifest is None:
        return {}
    try:
        return read_labels(manifest, folder)
    except CodoError as error:
        if given is not None:
            raise
        warn(f"{error}; without labels there is no kNN accuracy")
        return {}


def _images_fingerprint(bench: Bench) -> str:
    """Name the images of a bench and their order: 16 hex digits."""
    names = [[path.name for path in paths] for paths in bench.files]
    text = json.dumps([names, *(data_fingerprint(paths) for paths in bench.files)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
