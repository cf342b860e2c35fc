"""The built-in sample data: repeatable, whole or absent, COCO as pycocotools reads it, and not solved by colour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools.coco import COCO

from codo.cli.sample_data import sample_data_command
from codo.data import sample as sample_module
from codo.data.sample import (
    CLASS_NAMES,
    SMALLEST_VISIBLE,
    count_sample_data,
    generate_sample_data,
    sample_data,
    scene_annotations,
)
from codo.data.sample_polygons import polygon_area, visible_polygons
from codo.data.sample_scenes import CLASSES, OBJECT_DIAMETERS, Scene, detection_scene, foreground_picture
from codo.data.sample_textures import object_colours
from codo.errors import CodoError
from codo.runs.caching import atomic_folder, cache_root

SMALL = {"train": 9, "val": 3, "foregrounds": 4, "size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "set"
    generate_sample_data(path, **SMALL)
    return path


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [detection_scene(np.random.default_rng([7, index]), 160, index % 8) for index in range(60)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_arguments_give_the_same_bytes_and_another_seed_gives_others(folder: Path, tmp_path: Path) -> None:
    generate_sample_data(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(folder)
    generate_sample_data(tmp_path / "other", **SMALL, seed=1)
    other, first = contents(tmp_path / "other"), contents(folder)
    assert other.keys() == first.keys()
    assert not any(other[name] == first[name] for name in first)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from codo.data.sample import generate_sample_data as g;"
        f"g(Path(sys.argv[1]), **{SMALL!r})"
    )
    root = Path(sample_module.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], cwd=root, check=True, env={"PYTHONHASHSEED": "5"}
    )
    assert contents(tmp_path / "set") == contents(folder)


def test_a_larger_set_begins_with_the_smaller_one(folder: Path, tmp_path: Path) -> None:
    generate_sample_data(tmp_path / "larger", **{**SMALL, "train": 11, "val": 4, "foregrounds": 6})
    small, large = contents(folder), contents(tmp_path / "larger")
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 9 + 3 + 4
    assert all(large[name] == small[name] for name in pictures)
    for split in ("train", "val"):
        name = f"detection/instances_{split}.json"
        before, after = json.loads(small[name]), json.loads(large[name])
        assert after["images"][: len(before["images"])] == before["images"]
        assert after["annotations"][: len(before["annotations"])] == before["annotations"]


def test_no_two_pictures_are_alike(folder: Path) -> None:
    pictures = [data for name, data in contents(folder).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_it_and_box_polygons_and_area_agree(folder: Path, split: str) -> None:
    coco = COCO(str(folder / "detection" / f"instances_{split}.json"))
    assert {"info", "licenses", "images", "annotations", "categories"} <= coco.dataset.keys()
    assert "ynthetic" in coco.dataset["info"]["description"]
    assert coco.dataset["info"]["arguments"] == {**SMALL, "seed": 0}
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    for entry in coco.dataset["images"]:
        with Image.open(folder / "detection" / "images" / entry["file_name"]) as image:
            image.load()
            assert (image.width, image.height) == (entry["width"], entry["height"])
            assert max(image.size) == SMALL["size"]
    assert coco.anns
    for annotation in coco.anns.values():
        entry = coco.imgs[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert width > 1
        assert height > 1
        assert x + width <= entry["width"] + 0.01
        assert y + height <= entry["height"] + 0.01
        corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        np.testing.assert_allclose(corners.min(axis=0), [x, y], atol=0.011)
        np.testing.assert_allclose(corners.max(axis=0), [x + width, y + height], atol=0.011)
        rasterised = coco.annToMask(annotation).sum()
        assert annotation["area"] == pytest.approx(rasterised, rel=0.1, abs=15)
        assert annotation["iscrowd"] == 0


def test_ids_are_unique_over_both_splits(folder: Path) -> None:
    data = [json.loads((folder / "detection" / f"instances_{split}.json").read_text()) for split in ("train", "val")]
    ids = [image["id"] for part in data for image in part["images"]]
    assert len(set(ids)) == len(ids) == 12


def test_eight_pictures_have_every_class(folder: Path) -> None:
    counts = count_sample_data(folder)
    assert counts.images == {"train": 9, "val": 3, "foregrounds": 4}
    assert all(counts.boxes["train"][name] > 0 for name in CLASS_NAMES)


def test_neither_shape_nor_texture_alone_names_a_class() -> None:
    assert len(set(CLASSES)) == 8
    for part in (0, 1):
        values = [entry[part] for entry in CLASSES]
        assert all(values.count(value) == 2 for value in values)


def test_clutter_is_of_no_class(scenes: list[Scene]) -> None:
    clutter = [item for scene in scenes for item in scene.items if item.label is None]
    assert len(clutter) > 100
    assert all((item.texture, item.shape) not in CLASSES for item in clutter)
    assert any(item.texture in {texture for texture, _ in CLASSES} for item in clutter)
    assert any(item.shape in {shape for _, shape in CLASSES} for item in clutter)


def test_hidden_objects_are_not_annotated_and_all_others_are(scenes: list[Scene]) -> None:
    hidden = occluded = 0
    for scene in scenes:
        expected = []
        for index, item in enumerate(scene.items):
            if item.label is None:
                continue
            if scene.visible_fraction(index) >= SMALLEST_VISIBLE:
                expected.append(item.label + 1)
                occluded += scene.visible_fraction(index) < 0.9
            else:
                hidden += 1
        assert [annotation["category_id"] for annotation in scene_annotations(scene)] == expected
    assert hidden >= 3  # the rule had something to decide
    assert occluded >= 20


def test_annotations_cover_what_can_be_seen(scenes: list[Scene]) -> None:
    """A box is that of the visible pixels, not of the whole silhouette."""
    checked = 0
    for scene in scenes[:20]:
        shown = [
            index
            for index, item in enumerate(scene.items)
            if item.label is not None and scene.visible_fraction(index) >= SMALLEST_VISIBLE
        ]
        for index, annotation in zip(shown, scene_annotations(scene), strict=True):
            if len(annotation["segmentation"]) > 1:
                continue  # pieces too small to mark would widen the box below
            rows, columns = np.nonzero(scene.owner == index)
            x, y, width, height = annotation["bbox"]
            seen = (columns.max() + 1 - columns.min()) * (rows.max() + 1 - rows.min())
            assert width * height <= seen + 0.1
            inside = (columns >= x - 1) & (columns <= x + width) & (rows >= y - 1) & (rows <= y + height)
            assert inside.mean() > 0.9
            checked += 1
    assert checked > 30


def test_polygons_of_a_mask_known_by_hand() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:15, 10:30] = True
    mask[8:10, 15:18] = False  # a hole, filled
    mask[20:26, 0:6] = True  # a second piece, at the rim
    mask[28, 39] = True  # too small to mark
    first, second = visible_polygons(mask)
    np.testing.assert_allclose([first.min(axis=0), first.max(axis=0)], [[10, 5], [30, 15]])
    np.testing.assert_allclose([second.min(axis=0), second.max(axis=0)], [[0, 20], [6, 26]])
    assert polygon_area(first) == pytest.approx(200, abs=1)  # corners are cut by half a pixel
    assert polygon_area(second) == pytest.approx(36, abs=1)
    assert visible_polygons(np.zeros((5, 5), bool)) == []


def test_pieces_that_meet_at_a_corner_are_two() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = mask[10:18, 10:18] = True
    areas = [polygon_area(piece) for piece in visible_polygons(mask)]
    assert areas == pytest.approx([64, 64], abs=1)


def test_object_sizes_span_their_range(scenes: list[Scene]) -> None:
    diameters = np.array([2 * item.radius / 160 for scene in scenes for item in scene.items])
    low, high = OBJECT_DIAMETERS
    assert low <= diameters.min() < 1.15 * low
    assert high / 1.15 < diameters.max() <= high


def test_colour_does_not_give_the_class_away() -> None:
    """A linear classifier on each object's mean colour stays near chance, on objects it was not fitted to."""
    colours, labels = [], []
    for index in range(220):
        scene = detection_scene(np.random.default_rng([11, index]), 96, index % 8)
        for number, item in enumerate(scene.items):
            if item.label is not None and scene.visible_fraction(number) > 0.5:
                colours.append(scene.pixels[scene.owner == number].mean(axis=0) / 255)
                labels.append(item.label)
    features = np.column_stack([colours, np.square(colours), np.ones(len(colours))])
    target, half = np.eye(8)[labels], len(labels) // 2
    weights = np.linalg.lstsq(features[:half], target[:half], rcond=None)[0]
    accuracy = (np.argmax(features[half:] @ weights, axis=1) == labels[half:]).mean()
    assert len(labels) > 500
    assert accuracy < 1 / 8 + 0.08


def test_either_tone_of_a_texture_may_be_the_darker_one() -> None:
    """Spots cover less than their ground: if spots were always the lighter tone, lightness would tell them."""
    rng = np.random.default_rng(5)
    first, second = np.stack([object_colours(rng).mean(axis=1) for _ in range(400)], axis=1)
    assert 0.42 < (first < second).mean() < 0.58
    assert np.abs(first - second).min() > 0.1  # the texture can always be seen


def test_foregrounds_have_the_documented_size_and_more_kinds_than_the_classes() -> None:
    for index in range(12):
        height, width, _ = foreground_picture(np.random.default_rng([3, index])).shape
        assert min(height, width) == 128
        assert max(height, width) <= 192


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0; give 1 or more"),
        ({"val": -1}, "val is -1"),
        ({"foregrounds": 0}, "foregrounds is 0"),
        ({"size": 63}, "size is 63; give 64 to 2048"),
        ({"size": 4096}, "size is 4096"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(CodoError, match=message):
        generate_sample_data(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_set_works(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate_sample_data(
        tmp_path, train=3, val=1, foregrounds=1, size=64, progress=lambda done, total: calls.append((done, total))
    )  # an empty folder that exists is welcome
    assert calls == [(done, 5) for done in range(1, 6)]
    assert count_sample_data(tmp_path).images == {"train": 3, "val": 1, "foregrounds": 1}


def test_a_folder_with_something_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CodoError, match="is not empty; name a new or an empty folder"):
        generate_sample_data(tmp_path, **SMALL)
    assert contents(tmp_path) == {"mine.txt": b"keep"}
    with pytest.raises(CodoError, match="is a file"):
        generate_sample_data(tmp_path / "mine.txt", **SMALL)


def test_the_working_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodoError, match="the folder you are in"):
        generate_sample_data(Path("."), **SMALL)


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodoError, match="cannot write") as caught:
        generate_sample_data(tmp_path / "file" / "set", **SMALL)
    assert "\n" not in str(caught.value)


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_data(tmp_path, **SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_cached_once(tmp_path: Path, folder: Path) -> None:
    calls: list[int] = []
    first = sample_data(tmp_path, **SMALL, progress=lambda done, total: calls.append(done))
    assert contents(first) == contents(folder)
    assert len(calls) == 16
    assert sample_data(tmp_path, **SMALL, progress=lambda done, total: calls.append(done)) == first
    assert len(calls) == 16  # nothing was drawn again
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_other_arguments_and_formats_are_cached_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"train": 1, "val": 1, "foregrounds": 1, "size": 64}
    folders = [sample_data(tmp_path, **tiny), sample_data(tmp_path, **tiny, seed=1)]
    monkeypatch.setattr(sample_module, "FORMAT_VERSION", -1)
    folders.append(sample_data(tmp_path, **tiny))
    assert len(set(folders)) == 3


def test_another_process_may_finish_first(tmp_path: Path) -> None:
    """While one generation runs, another one of the same set finishes: both get the whole set, one copy stays."""
    tiny = {"train": 2, "val": 1, "foregrounds": 1, "size": 64}
    inner: list[Path] = []

    def meanwhile(done: int, total: int) -> None:
        if done == 2:
            inner.append(sample_data(tmp_path, **tiny))

    outer = sample_data(tmp_path, **tiny, progress=meanwhile)
    assert inner == [outer]
    assert [path.name for path in tmp_path.iterdir()] == [outer.name]
    assert count_sample_data(outer).images == {"train": 2, "val": 1, "foregrounds": 1}


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CODO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "codo"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / ".cache" / "codo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "codo"
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert sample_data(train=1, val=1, foregrounds=1, size=64).parent == tmp_path / "own"


def test_a_failed_atomic_folder_says_so_and_is_gone(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic_folder(tmp_path / "set") as temporary:
            (temporary / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(CodoError, match="No space left on device; free some space"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_it_wrote(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "set"
    arguments = ["--train", "9", "--val", "3", "--foregrounds", "4", "--size", "128"]
    result = CliRunner().invoke(sample_data_command, [str(target), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert contents(target) == contents(folder)
    boxes = count_sample_data(target).boxes["train"]
    assert f"train: 9 images, {sum(boxes.values())} boxes" in result.stdout
    assert all(f"{boxes[name]}  {name}" in result.stdout for name in CLASS_NAMES)
    assert "for trying the tool only" in result.stdout
    assert "rendering: 16" in result.stderr
    again = CliRunner().invoke(sample_data_command, [str(target), *arguments])
    assert isinstance(again.exception, CodoError)


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, codo.cli.sample_data;"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'PIL', 'torch', 'rich')))"
    )
    root = Path(sample_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
