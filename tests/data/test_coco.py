"""COCO-format sets: finding them, reading them, and what is refused, clipped, skipped."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codo.data.coco import background_paths, find_splits, load_coco, split_paths
from codo.data.files import data_fingerprint
from codo.data.masks import check_mask
from codo.errors import CodoError

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
        {"id": 3, "file_name": "sub/b.jpg", "width": 40, "height": 40},
        {"id": 9, "file_name": "empty.jpg", "width": 10, "height": 10},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2.5, 3, 4.25], "area": 5, "iscrowd": 0},
        {
            "id": 2,
            "image_id": 3,
            "category_id": 1,
            "bbox": [0, 0, 40, 40],
            "area": 99.5,
            "iscrowd": 1,
            "segmentation": {"counts": [3, 4], "size": [40, 40]},
        },
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0.25, 3.0, 0.4, 0.3], "segmentation": [[0.5, 1.5, 2.25]]},
    ],
}


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(CONTENT)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a JSON beside a folder with the three image files; they are never decoded here."""
    for name in ("a.jpg", "sub/b.jpg", "empty.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()

    def write(value: Any) -> Path:
        path = tmp_path / "instances_train.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def test_a_good_file_comes_whole(write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path) -> None:
    data = load_coco(write(content), tmp_path / "images")
    assert [image.id for image in data.images] == [7, 3, 9]
    assert data.images[1].path == tmp_path / "images" / "sub" / "b.jpg"
    assert (data.images[0].width, data.images[0].height) == (100, 50)
    assert list(data.categories.items()) == [(1, "person"), (90, "toothbrush")]
    assert data.skipped == {}
    assert data.annotations[9] == []
    (first,) = data.annotations[7]
    assert first == CONTENT["annotations"][0]
    assert all(isinstance(x, float) for x in first["bbox"])
    crowd, thin = data.annotations[3]
    assert crowd == CONTENT["annotations"][1]
    assert thin["bbox"] == [0.25, 3.0, 0.4, 0.3]  # thinner than a pixel, as some of COCO's are
    assert thin["area"] == pytest.approx(0.12)
    assert thin["iscrowd"] == 0
    assert thin["segmentation"] == [[0.5, 1.5, 2.25]]


@pytest.mark.parametrize(
    ("box", "kept", "reason"),
    [
        ([-5, -6, 20, 20], [0, 0, 15, 14], "box partly outside its image, clipped"),
        ([90, 40, 20.5, 30], [90, 40, 10, 10], "box partly outside its image, clipped"),
        ([90, 40, 10.005, 10], [90, 40, 10, 10], None),
        ([100, 0, 5, 5], None, "box wholly outside its image"),
        ([-9, 0, 9, 5], None, "box wholly outside its image"),
        ([99.9999999, 5, 30, 20], None, "box wholly outside its image"),  # a sliver of 1e-7 px, nothing in float32
        ([5, -20, 30, 20.009], None, "box wholly outside its image"),
        ([5, -20, 30, 20.5], [5, 0, 30, 0.5], "box partly outside its image, clipped"),
        ([5, 5, 0, 3], None, "box without width or height"),
        ([5, 5, 3, -1], None, "box without width or height"),
        ([5, 5, float("nan"), 3], None, "box that is not four finite numbers"),
        ([5, float("inf"), 3, 3], None, "box that is not four finite numbers"),
        ([5, 5, 3], None, "box that is not four finite numbers"),
        ([5, None, 3, 3], None, "box that is not four finite numbers"),
        ([10**400, 5, 3, 3], None, "box that is not four finite numbers"),
        ("1234", None, "box that is not four finite numbers"),
        (None, None, "box that is not four finite numbers"),
    ],
)
def test_boxes(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, box: Any, kept: Any, reason: str | None
) -> None:
    content["annotations"][0]["bbox"] = box
    data = load_coco(write(content), tmp_path / "images")
    assert [a["bbox"] for a in data.annotations[7]] == ([] if kept is None else [kept])
    assert data.skipped == ({} if reason is None else {reason: 1})


def test_whole_numbers_may_be_written_as_floats(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    content["images"][0] |= {"id": 7.0, "width": 100.0, "height": 50.0}
    content["annotations"][0]["image_id"] = 7.0
    image = load_coco(write(content), tmp_path / "images").images[0]
    assert (image.id, image.width, image.height) == (7, 100, 50)
    assert all(type(number) is int for number in (image.id, image.width, image.height))
    content["images"][0]["width"] = 100.5
    with pytest.raises(CodoError, match=r"width is 100.5; a whole number is expected"):
        load_coco(write(content), tmp_path / "images")


@pytest.mark.parametrize("corners", [True, False])
def test_boxes_given_by_their_corners_are_suspected(
    write: Callable[[Any], Path],
    content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    corners: bool,
) -> None:
    boxes = [[60, 20, 30, 20], [10, 5, 80, 40], [90, 40, 8, 8], [2, 1, 30, 20], [1, 1, 4, 9], [70, 3, 20, 9]]
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": [x, y, x * corners + w, y * corners + h]}
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    load_coco(write(content), tmp_path / "images")
    said = " ".join(capsys.readouterr().err.split())
    assert ("3 of 6 boxes reach beyond their image: are they x1, y1, x2, y2?" in said) == corners


def test_annotations_of_nothing_are_counted(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    content["annotations"][0]["category_id"] = 2
    content["annotations"][1]["image_id"] = 8
    (tmp_path / "images" / "sub" / "b.jpg").unlink()
    data = load_coco(write(content), tmp_path / "images")
    assert [image.id for image in data.images] == [7, 9]
    assert data.annotations == {7: [], 9: []}
    assert data.skipped == {
        "image whose file is absent": 1,
        "annotation of an image whose file is absent": 1,
        "annotation for an image that is not listed": 1,
        "annotation with a category that is not listed": 1,
    }


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Make an edit of the JSON: `images.0.id` -> value; `...` removes the key."""

    def apply(content: Any) -> None:
        *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for part in way:
            content = content[part]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("images", ..., '"images" is missing'),
        ("annotations", ..., '"annotations" is missing'),
        ("images", [], "instances_train.json: it lists no images"),
        ("categories", {"1": "x"}, '"categories" is not a list'),
        ("images.1.width", ..., r"images\[1\] has no 'width'"),
        ("images.0", 5, r"images\[0\] has no 'id'"),
        ("images.0.height", "50", r"images\[0\]: height is '50'; a whole number is expected"),
        ("images.0.height", 0, r"images\[0\]: its size is 100 x 0"),
        ("images.2.width", 2**32, r"images\[2\]: its size is 4294967296 x 10; pixels from 1 to 2147483647 are "),
        ("images.0.id", 2**63, r"images\[0\]: id 9223372036854775808 is too large; .* below 2\^63"),
        ("images.0.id", -(10**400), r"images\[0\]: id -10{28} is too large"),
        ("categories.0.id", 2**63, r"categories\[0\]: id 9223372036854775808 is too large"),
        ("categories.1.name", "a\ud83d", r"categories\[1\]: name 'a\\ud83d' is no Unicode text: '\\ud83d' is half a "),
        ("images.0.file_name", 5, r"images\[0\]: file_name is 5; a text is expected"),
        ("images.1.id", 7, r"images\[1\]: image id 7 occurs twice"),
        ("categories.0.id", 1, "category id 1 occurs twice"),
        ("categories.0.name", ..., r"categories\[0\] has no 'name'"),
        ("annotations.2.bbox", ..., r"annotations\[2\] has no 'bbox'"),
        ("annotations.0.image_id", ..., r"annotations\[0\] has no 'image_id'"),
        ("annotations.0.image_id", [], r"annotations\[0\] is not a COCO annotation"),
        ("annotations.0", "x", r"annotations\[0\] is not a COCO annotation"),
        ("images.0.file_name", "/etc/passwd", "leaves the image folder"),
        ("images.0.file_name", "../instances_train.json", "leaves the image folder"),
        ("images.0.file_name", "sub/../../x.jpg", "leaves the image folder"),
        ("images.0.file_name", "..\\x.jpg", "leaves the image folder"),
        ("images.0.file_name", "C:\\x.jpg", "leaves the image folder"),
    ],
)
def test_what_is_not_coco_is_refused(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, path: str, value: Any, message: str
) -> None:
    edit(path, value)(content)
    with pytest.raises(CodoError, match=message) as caught:
        load_coco(write(content), tmp_path / "images")
    assert str(tmp_path / "instances_train.json") in str(caught.value)


def test_categories_of_one_name_are_told(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_coco(write(content), tmp_path / "images")
    assert "several categories" not in capsys.readouterr().err
    content["categories"][1]["name"] = content["categories"][0]["name"]
    assert len(load_coco(write(content), tmp_path / "images").categories) == len(content["categories"])
    assert "several categories are called" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "name", ["sub\\b c.jpg", "sub/b%20c.jpg", "images/sub/b c.jpg", "images\\sub\\b%20c.jpg", "images%2Fsub%2Fb c.jpg"]
)
def test_names_as_other_tools_spell_them(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "images" / "sub" / "b c.jpg").touch()
    content["images"][0]["file_name"] = name
    assert load_coco(write(content), tmp_path / "images").images[0].path == tmp_path / "images" / "sub" / "b c.jpg"
    (tmp_path / "x.jpg").touch()
    for outside in ("..%2Fx.jpg", "images/../../x.jpg", "..\\x.jpg"):  # percent-encoded it is a name that is not there
        content["images"][0]["file_name"] = outside
        if "%" in outside:
            assert len(load_coco(write(content), tmp_path / "images").images) == 2
        else:
            with pytest.raises(CodoError, match="leaves the image folder"):
                load_coco(write(content), tmp_path / "images")


def test_backgrounds_that_are_listed_and_absent_are_told(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["images"][0]["file_name"] = "gone.jpg"
    file = write(content)
    assert len(split_paths(tmp_path, "train")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{file}: 1 of its 3 images are not in {tmp_path / 'images'}, e.g. 'gone.jpg'" in said


def test_links_that_leave_the_folder_are_refused_if_named(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.jpg").touch()
    (tmp_path / "images" / "file.jpg").symlink_to(tmp_path / "secret" / "x.jpg")
    (tmp_path / "images" / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "images" / "near.jpg").symlink_to("a.jpg")
    for name, refused in {"file.jpg": True, "folder/x.jpg": True, "near.jpg": False, "./a.jpg": False}.items():
        content["images"][0]["file_name"] = name
        if refused:
            with pytest.raises(CodoError, match="a symbolic link that leads out of"):
                load_coco(write(content), tmp_path / "images")
        else:
            assert len(load_coco(write(content), tmp_path / "images").images) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(CONTENT, indent=1)[:200], r"line \d+, column \d+"),
        ('{"images": [],', r"line 1, column 15 \(the end of the file: is it truncated\?\)"),
        ('{"images": []\n,, "annotations": []}', "line 2, column 2$"),
        ("", "line 1, column 1"),
        ("[1, 2]", "is not COCO"),
        ("[" * 100_000, "is not a JSON text"),
    ],
)
def test_broken_json_says_where(write: Callable[[Any], Path], tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CodoError, match=message) as caught:
        load_coco(write(text), tmp_path / "images")
    assert "instances_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_json_wrong_bytes_and_absent_images(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CodoError, match=r"none\.json cannot be read: No such file"):
        load_coco(tmp_path / "none.json", tmp_path / "images")
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe9\xe8"}')
    with pytest.raises(CodoError, match=r"latin\.json is not a JSON text"):
        load_coco(tmp_path / "latin.json", tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CodoError, match=r"none of its 3 images, e\.g\. 'a\.jpg', is in .*elsewhere"):
        load_coco(write(content), tmp_path / "elsewhere")
    with pytest.raises(CodoError, match="nowhere does not exist"):
        load_coco(write(content), tmp_path / "nowhere")


def test_a_byte_order_mark_is_fine(write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path) -> None:
    assert len(load_coco(write("\ufeff" + json.dumps(content)), tmp_path / "images").images) == 3


def official(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text(json.dumps(CONTENT))
        else:
            shutil.copytree(root / "files", path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/b.jpg", "empty.jpg"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).touch()
    return tmp_path


def test_layouts_are_found(root: Path) -> None:
    official(root, "annotations/instances_train2017.json", "annotations/instances_val2017.json")
    official(root, "annotations/captions_train2019.json", "train2017", "images/val2017")
    splits = find_splits(root)
    assert splits.train_json == root / "annotations" / "instances_train2017.json"
    assert splits.train_images == root / "train2017"
    assert splits.val_json == root / "annotations" / "instances_val2017.json"
    assert splits.val_images == root / "images" / "val2017"
    assert splits.layout == "official COCO layout, 2017"

    official(root, "annotations/instances_train2014.json", "annotations/instances_val2014.json", "train2014", "val2014")
    official(root, "annotations/instances_train2020.json")  # has no validation split
    assert find_splits(root).train_images == root / "train2017"
    assert find_splits(root).layout == "official COCO layout, 2017 (the newest of 2014, 2017)"

    official(root, "instances_train.json", "instances_val.json")
    splits = find_splits(root)
    assert (splits.train_json, splits.val_images) == (root / "instances_train.json", root / "images")
    assert splits.layout.startswith("simple layout")


def test_one_folder_of_images_beside_the_annotations_will_do(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text("{}")
    with pytest.raises(CodoError, match="no folder train/, or images/train/, or images/ in it"):
        find_splits(tmp_path)
    (tmp_path / "images").mkdir()
    found = find_splits(tmp_path)
    assert found.train_images == found.val_images == tmp_path / "images"


def test_in_the_simple_layout_images_may_lie_beside_the_annotations(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    """So the pictures of a flat folder that an `instances_val.json` in it lists are kept out of the backgrounds."""
    file = write({**content, "images": content["images"][:1]})
    file.rename(tmp_path / "images" / "instances_val.json")
    assert [path.name for path in background_paths(tmp_path / "images")] == ["empty.jpg", "b.jpg"]


def test_no_layout_names_both_and_what_is_there(root: Path) -> None:
    with pytest.raises(CodoError, match=r"instances_train\.json.*instances_train2017\.json.*there is files/$"):
        find_splits(root)
    official(root, "annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017")
    with pytest.raises(CodoError, match="val annotations but not the images: no folder val2017/"):
        find_splits(root)
    for find in (find_splits, background_paths):
        with pytest.raises(CodoError, match="none does not exist"):
            find(root / "none")
        with pytest.raises(CodoError, match=r"a\.jpg is a file"):
            find(root / "files" / "a.jpg")


def test_backgrounds_are_the_training_images_or_the_folder(root: Path) -> None:
    (root / "files" / "unlisted.jpg").touch()
    names = [path.name for path in background_paths(root / "files")]
    assert names == ["a.jpg", "empty.jpg", "b.jpg", "unlisted.jpg"]
    official(root, "annotations/instances_train2017.json", "train2017", "val2017")
    without_labels = {"images": CONTENT["images"]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(without_labels))
    assert background_paths(root) == [root / "train2017" / name for name in ("a.jpg", "sub/b.jpg", "empty.jpg")]


def test_without_training_annotations_the_validation_images_are_left_out(root: Path) -> None:
    (root / "files").rename(root / "images")
    (root / "instances_val.json").write_text(json.dumps(CONTENT | {"images": CONTENT["images"][:2]}))
    assert background_paths(root) == [root / "images" / "empty.jpg"]
    (root / "instances_val.json").write_text(json.dumps(CONTENT))
    with pytest.raises(CodoError, match="all 3 images are of its validation split"):
        background_paths(root)


def test_a_split_that_is_not_there_has_no_images(root: Path) -> None:
    assert split_paths(root / "files", "val") == []  # a plain folder
    official(root, "annotations/instances_train2017.json", "train2017")
    assert split_paths(root, "val") == []
    assert split_paths(root, "train") == background_paths(root)
    official(root, "annotations/instances_val2017.json", "val2017")
    assert split_paths(root, "val") == [root / "val2017" / name for name in ("a.jpg", "sub/b.jpg", "empty.jpg")]


def test_backgrounds_are_of_the_year_that_is_detected_on(root: Path) -> None:
    official(root, "annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017")
    official(root, "annotations/instances_train2020.json", "train2020")  # has no validation split
    assert {path.parts[len(root.parts)] for path in background_paths(root)} == {"train2017"}


def test_fingerprint_is_of_names_and_sizes(root: Path) -> None:
    paths = sorted(path for path in (root / "files").rglob("*") if path.is_file())
    first = data_fingerprint(paths)
    assert len(first) == 64
    shutil.copytree(root / "files", root / "copy")
    copies = [root / "copy" / path.relative_to(root / "files") for path in paths]
    os.utime(copies[0], (1, 1))
    assert data_fingerprint(copies[::-1]) == first
    assert data_fingerprint(paths[1:]) != first
    copies[0].write_bytes(b"x")
    assert data_fingerprint(copies) != first
    copies[0].unlink()
    with pytest.raises(CodoError, match="No such file"):
        data_fingerprint(copies)


@pytest.mark.parametrize(
    ("name", "images", "classes", "boxes"),
    [
        ("bccd_320", (205, 87), 3, (2804, 1137)),
        ("cards", (296, 67), 6, (527, 143)),
        ("coco_mini", (126, 128), 80, (928, 898)),
        ("tiny_coco", (50, 50), 80, (470, 382)),
    ],
)
def test_real_sets(real_data: Path, name: str, images: tuple[int, int], classes: int, boxes: tuple[int, int]) -> None:
    splits = find_splits(real_data / name)
    pairs = [(splits.train_json, splits.train_images), (splits.val_json, splits.val_images)]
    for (json_path, folder), image_count, box_count in zip(pairs, images, boxes, strict=True):
        raw = json.loads(json_path.read_text())
        data = load_coco(json_path, folder)
        assert (len(data.images), len(data.categories)) == (image_count, classes)
        assert data.skipped == {}
        kept = {a["id"]: a for annotations in data.annotations.values() for a in annotations}
        assert len(kept) == box_count
        for annotation in raw["annotations"]:
            read = kept[annotation["id"]]
            assert read["bbox"] == pytest.approx(annotation["bbox"], abs=0.01)
            assert read.get("segmentation") == annotation.get("segmentation")
            assert read["iscrowd"] == annotation.get("iscrowd", 0)
    assert len(background_paths(real_data / name)) == images[0]


def test_what_json_has_not_is_read_all_the_same(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path
) -> None:
    """A NaN sends the file through Python's own reader, which gives the same."""
    quick = load_coco(write(content), tmp_path / "images")
    slow = load_coco(write(content | {"more": float("nan")}), tmp_path / "images")
    assert slow == quick
    assert dict(slow.annotations) == dict(quick.annotations)


@pytest.mark.parametrize("odd", ["NaN", "1e999"])
def test_a_segmentation_that_is_no_json_is_left_to_whoever_needs_it(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, odd: str
) -> None:
    """Box detectors never look at it; those of masks name it."""
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, "odd"]]
    path = write(content)
    path.write_text(path.read_text().replace('"odd"', odd))
    first = load_coco(path, tmp_path / "images").annotations[7][0]
    assert not math.isfinite(first["segmentation"][0][-1])
    with pytest.raises(CodoError):
        check_mask(first["segmentation"], 10, 10)


def test_a_text_that_is_no_utf8_is_said(write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path) -> None:
    path = write(content)
    name = content["images"][0]["file_name"].encode()
    path.write_bytes(path.read_bytes().replace(b'"' + name, b'"\xff' + name))
    with pytest.raises(CodoError, match=r"images\[0\]|JSON"):
        load_coco(path, tmp_path / "images")


def test_numbers_of_another_kind(write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path) -> None:
    content["annotations"][0] |= {"category_id": 1.0, "image_id": 7.0, "id": "seven", "area": None, "iscrowd": True}
    (first,) = load_coco(write(content), tmp_path / "images").annotations[7]
    assert "id" not in first
    assert (first["category_id"], first["image_id"], first["iscrowd"]) == (1, 7, 1)
    assert first["area"] == first["bbox"][2] * first["bbox"][3]
    content["annotations"][0] |= {"area": 10**400, "id": 2**63}
    assert load_coco(write(content), tmp_path / "images").annotations[7] == [first]


@pytest.mark.parametrize("number", [-1, 0, 2**63 - 1, -(2**63) + 1])
def test_ids_of_64_bits_come_back(
    write: Callable[[Any], Path], content: dict[str, Any], tmp_path: Path, number: int
) -> None:
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = number
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = number
    data = load_coco(write(content), tmp_path / "images")
    assert data.annotations[number] == [{**CONTENT["annotations"][0], "image_id": number, "category_id": number}]
    assert data.categories[number] == "toothbrush"


def test_a_large_file_is_lean(tmp_path: Path) -> None:
    """Annotations are kept as columns: a fraction of what their dicts, or the file, take."""
    count, images = 20_000, 2_000
    rng = np.random.default_rng(0)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)],
        "annotations": [
            {"id": i, "image_id": i % images, "category_id": 1, "bbox": box, "segmentation": [[1.5] * 100]}
            for i, box in enumerate((rng.random((count, 4)) * 200 + 1).round(2).tolist())
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "images").mkdir()
    for i in range(images):
        (tmp_path / "images" / f"{i}.jpg").touch()
    file = tmp_path / "large.json"
    file.write_text(json.dumps(content))
    del content
    tracemalloc.start()
    coco = load_coco(file, tmp_path / "images")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * file.stat().st_size
    assert sum(map(len, coco.annotations.values())) == count
    assert [a["id"] for a in coco.annotations[5]] == list(range(5, count, images))
