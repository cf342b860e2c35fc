"""Images and annotations on their way in: the cache, the loader, COCO's JSON, folders of a million files.

    python -m benchmarks.data            # some minutes
    python -m benchmarks.data --small    # seconds, writes nothing

The images are those of `$CODO_DATA/objects_open` and `cards`, or the built-in sample data where they are not.
COCO's JSON is made up: the number of images and boxes of COCO's training set, with polygons and without; folders hold
links to a few files. What reads them runs in a process of its own, whose peak of memory is measured from its start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from benchmarks.pictures import real_images
from benchmarks.results_file import Row, versions, write
from codo.config import load_pretrain_config
from codo.config.pretrain import PretrainConfig
from codo.data.cache import AUTO_LIMIT, ImagePool, Target, _decode_all
from codo.data.coco import load_coco
from codo.data.files import ImageSet, data_fingerprint
from codo.data.images import list_images
from codo.data.sample import sample_data
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.timing import in_turns
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.samples import StepSampler, sample_loader
from codo.runs.hardware import Hardware

COCO_IMAGES, COCO_BOXES = 118_287, 860_001
IMAGENET = 1_281_167
SECONDS = 10.0
"""In which the JSON should be loaded."""


NOTE = (
    "as many images and boxes in a third of the bytes. Tried: dicts (5.2), typed objects (3.8), columns (2.9), columns "
    "that let go of each entry as it is read (2.5); the rest is the file, an object an image, and their paths"
)
"""Why boxes without polygons take more than twice their file."""


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep what is measured out of the user's cache."""
    before = os.environ.get("CODO_CACHE")
    os.environ["CODO_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("CODO_CACHE")
        if before is not None:
            os.environ["CODO_CACHE"] = before


def config_of_images(small: Path | None) -> PretrainConfig:
    """Settings of `codo-small` on the images that are here; on a few made up in `small` where that is given."""
    root = real_images()
    fields: dict[str, Any] = {"run.device": "cpu"}
    if small is not None:
        rng = np.random.default_rng(0)
        (small / "pictures").mkdir()
        for i in range(40):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            coarse.resize((400, 300), Image.Resampling.BICUBIC).save(small / "pictures" / f"{i}.jpg")
        fields |= {"data.foregrounds": str(small / "pictures"), "data.backgrounds": str(small / "pictures")}
    elif root is not None:
        fields |= {"data.foregrounds": str(root / "objects_open" / "images"), "data.backgrounds": str(root / "cards")}
    else:
        sample = sample_data()
        fields |= {"data.foregrounds": str(sample / "foregrounds"), "data.backgrounds": str(sample / "detection")}
    return load_pretrain_config(preset="codo-small", flags=fields)


def measure_cache(images: ImageSet[Any], side: int, rounds: int) -> dict[str, float]:
    """Time building a cache beside decoding alone, and opening it."""
    target = Target(None, side)

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ImagePool.build(images, short_side=side, cache="disk", cache_dir=Path(folder))

    def decode() -> None:
        for _ in _decode_all(images, target, 0):
            pass

    times = in_turns({"decode": decode, "build": build}, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        made = ImagePool.build(images, short_side=side, cache="disk", cache_dir=Path(folder))
        opened = in_turns(
            {"open": lambda: ImagePool.build(images, short_side=side, cache="disk", cache_dir=Path(folder))}, rounds=5
        )
    return {
        "images": len(images),
        "decoded_per_s": len(images) / times.median("decode"),
        "built_per_s": len(images) / times.median("build"),
        "share_of_floor": 1 / times.ratio("build", "decode"),
        "open_ms": 1000 * opened.median("open"),
        "predicted_mib": made.predicted_bytes / 2**20,
    }


def measure_loader(config: PretrainConfig, steps: int, rounds: int) -> dict[str, float]:
    """Samples a second of the loader without worker processes, by where images are kept."""
    batch = config.optim.batch_size
    hardware = Hardware(torch.device("cpu"), "fp32", 0, torch.get_num_threads())
    sides: dict[str, Callable[[], None]] = {}
    for cache in ("disk", "ram", "off"):
        own = config.model_copy(update={"run": config.run.model_copy(update={"cache": cache})})
        dataset = build_dataset(own, find_sources(own))

        def load(dataset: Any = dataset) -> None:
            for _ in sample_loader(dataset, StepSampler(len(dataset), batch, 0, 0, steps), hardware):
                pass

        sides[cache] = load
    times = in_turns(sides, rounds=rounds)
    return {cache: steps * batch / times.median(cache) for cache in sides}


def peak_of(work: Callable[..., dict[str, Any]], *arguments: Any, fresh: bool) -> dict[str, Any]:
    """Run something, in a fresh process or this one; add the seconds, and the MiB that memory rose by at the peak."""
    if not fresh:
        return _measured(work, *arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, *arguments).result()


def _measured(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far (Linux)
    start = time.perf_counter()
    found = work(*arguments)
    seconds = time.perf_counter() - start
    return found | {"seconds": seconds, "peak_mib": (_memory("VmHWM") - before) / 1024}


def _memory(name: str) -> int:
    """Read a figure of this process's memory, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def write_coco(folder: Path, images: int, boxes: int, *, masks: bool) -> Path:
    """Write a JSON like COCO's, and empty files for its images."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(exist_ok=True)
    listed = []
    for i in range(images):
        name = f"{i:012d}.jpg"
        (folder / "images" / name).touch()
        url = f"http://images.cocodataset.org/train2017/{name}"
        listed.append({"id": i, "file_name": name, "width": 640, "height": 480, "coco_url": url, "flickr_url": url})
    places, sizes = (rng.random((boxes, 2)) * [500, 380]).round(2), (5 + rng.random((boxes, 2)) * 99).round(2)
    points = np.clip(rng.gamma(1.5, 13, boxes).astype(int) + 4, 3, 200)  # COCO: some 20 points an outline
    owners, classes = rng.integers(0, images, boxes).tolist(), rng.integers(1, 81, boxes).tolist()
    annotations = []
    for i in range(boxes):
        outline = (places[i] + rng.random((points[i], 2)) * sizes[i]).round(2).ravel().tolist() if masks else []
        annotations.append(
            {
                **({"segmentation": [outline]} if masks else {}),
                "area": float(sizes[i].prod()) * 0.513,
                "iscrowd": 0,
                "image_id": owners[i],
                "bbox": [*places[i].tolist(), *sizes[i].tolist()],
                "category_id": classes[i],
                "id": 900_000 + i,
            }
        )
    content = {"images": listed, "annotations": annotations}
    content["categories"] = [{"id": c, "name": f"class {c}"} for c in range(1, 81)]
    file = folder / f"instances_{'masks' if masks else 'boxes'}.json"
    file.write_bytes(msgspec.json.encode(content))
    return file


def load(file: Path) -> dict[str, Any]:
    """Load a JSON."""
    coco = load_coco(file, file.parent / "images")
    return {"images": len(coco.images), "file_mib": file.stat().st_size / 2**20}


def make_files(folder: Path, count: int) -> None:
    """Fill a folder with links, a thousand to a sub-folder, as ImageNet has its classes."""
    for i in range(count):
        if i % 1000 == 0:
            home = folder / f"n{i // 1000:08d}"
            home.mkdir(parents=True)
            first = home / "n_0.JPEG"
            first.write_bytes(b"x" * 100)
        else:
            os.link(first, home / f"n_{i}.JPEG")


def start_up(folder: Path) -> dict[str, Any]:
    """Do what a run does with a folder before its first image is read."""
    images = list_images(folder)
    data_fingerprint(images)
    pool = ImagePool.build(images, square=64, cache="off")
    return {"files": len(pool)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    facts = machine() | peaks(rounds=1 if small else 5) | versions("torch", "pillow", "msgspec")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        config = config_of_images(temporary if small else None)
        measure(facts, config, temporary, small=small)


def measure(facts: dict[str, Any], config: PretrainConfig, temporary: Path, *, small: bool) -> None:
    """Measure all, and report it."""
    with cache_in(temporary / "cache"):
        images = find_sources(config).foregrounds
        side = int(2.25 * config.canvas)
        cache = measure_cache(images, side, rounds=1 if small else 3)
        loader = measure_loader(config, steps=2 if small else 20, rounds=1 if small else 3)
        share = 200 if small else 1
        coco = {}
        for kind in ("masks", "boxes"):
            file = write_coco(temporary, COCO_IMAGES // share, COCO_BOXES // share, masks=kind == "masks")
            found = peak_of(load, file, fresh=not small)
            coco[kind] = found | {"ratio": found["peak_mib"] / found["file_mib"]}
            file.unlink()
        listing = []
        for count in (1_000, 3_000) if small else (1_000, 10_000, 100_000, 1_000_000):
            make_files(temporary / "files", count)
            listing.append(peak_of(start_up, temporary / "files", fresh=not small))
            shutil.rmtree(temporary / "files")
    report(facts, cache, loader, coco, listing, small=small)


def report(
    facts: dict[str, Any],
    cache: dict[str, float],
    loader: dict[str, float],
    coco: dict[str, Any],
    listing: list[dict[str, Any]],
    *,
    small: bool,
) -> None:
    """Print, and write if it is the long form."""
    rows = []
    for kind, found in coco.items():
        text = f"{found['file_mib']:.0f} MiB in {found['seconds']:.1f} s, at the peak {found['peak_mib']:.0f} MiB"
        work = f"COCO-train-sized JSON, {'polygons' if kind == 'masks' else 'boxes alone'}"
        rows.append(Row(f"{work}: seconds", text, found["seconds"], SECONDS, at_most=True, unit="s"))
        note = NOTE if kind == "boxes" else ""
        rows.append(Row(f"{work}: memory / file", text, found["ratio"], 2.0, at_most=True, note=note))
    needs = cache["predicted_mib"] / cache["images"] * IMAGENET / 1024
    lines = [
        f"Cache of {cache['images']:.0f} images: {cache['built_per_s']:.0f} images/s built, decoding alone "
        f"{cache['decoded_per_s']:.0f} ({cache['share_of_floor']:.0%} of that floor); opened in "
        f"{cache['open_ms']:.1f} ms. {IMAGENET:,} such images would take {needs:.0f} GiB "
        f"(`auto` writes up to {AUTO_LIMIT / 2**30:.0f} GiB).",
        "",
        "Loader, samples a second without workers: " + ", ".join(f"{k} {v:.0f}" for k, v in loader.items()) + ".",
        "",
        "| files listed | s | s / 1,000 files | MiB at the peak |",
        "|---:|---:|---:|---:|",
        *(
            f"| {r['files']:,} | {r['seconds']:.2f} | {1000 * r['seconds'] / r['files']:.4f} | {r['peak_mib']:.0f} |"
            for r in listing
        ),
    ]
    if small:
        print(facts, *rows, *lines, sep="\n")
        return
    more = {"cache": cache, "loader": loader, "coco": coco, "listing": listing, "lines": lines}
    print(write("data", "Images and annotations on their way in", "python -m benchmarks.data", facts, rows, **more))


if __name__ == "__main__":
    main()
