import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codo.config.transfer import TransferConfig
from codo.data.coco import CocoDataset, CocoImage, load_coco
from codo.errors import CodoError
from codo.jobs.transfer.data import fingerprint_of, label_map, load_data, take_fraction
from codo.jobs.transfer.dataset import MAX_REPLACEMENTS, DetectionDataset, batches, read_image

LABELS = {7: 1, 90: 2}


def load(root: Path, split: str = "train") -> CocoDataset:
    return load_coco(root / f"instances_{split}.json", root / "images")


@pytest.fixture
def own_root(coco_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(coco_root, tmp_path / "squares")
    return tmp_path / "squares"


def test_boxes_follow_the_image_when_it_is_shrunk(coco_root: Path) -> None:
    coco = load(coco_root)
    sample = DetectionDataset(coco, LABELS, 40, 1000, train=False)[(0, 1)]  # 96 x 80
    assert sample.image.shape == (3, 40, 48)
    x, y, w, h = coco.annotations[10][0]["bbox"]
    torch.testing.assert_close(sample.boxes[0], torch.tensor([x, y, x + w, y + h]) / 2)
    assert sample.labels.tolist() == [2, 1]
    inside = sample.image[:, round(y / 2) + 2 : round((y + h) / 2) - 2, round(x / 2) + 2 : round((x + w) / 2) - 2]
    assert inside.max() == 0  # the dark square


def test_small_images_keep_their_size_and_the_long_side_is_bounded(coco_root: Path) -> None:
    coco = load(coco_root)
    assert DetectionDataset(coco, LABELS, 200, 400, train=False)[(0, 1)].image.shape == (3, 80, 96)
    assert DetectionDataset(coco, LABELS, 200, 48, train=False)[(0, 1)].image.shape == (3, 40, 48)


def test_a_flip_mirrors_image_and_boxes(coco_root: Path) -> None:
    coco = load(coco_root)
    plain = DetectionDataset(coco, LABELS, 200, 400, train=True, flip_p=0.0)[(0, 0)]
    flipped = DetectionDataset(coco, LABELS, 200, 400, train=True, flip_p=1.0)[(0, 0)]
    assert torch.equal(flipped.image, plain.image.flip(2))
    assert torch.equal(flipped.boxes[:, [0, 2]], 80 - plain.boxes[:, [2, 0]])
    assert torch.equal(flipped.boxes[:, [1, 3]], plain.boxes[:, [1, 3]])


def test_flips_are_a_function_of_seed_epoch_and_index(coco_root: Path) -> None:
    coco = load(coco_root)

    def flips(seed: int) -> list[bool]:
        dataset = DetectionDataset(coco, LABELS, 200, 400, train=True, flip_p=0.5, seed=seed)
        still = DetectionDataset(coco, LABELS, 200, 400, train=False)
        return [not torch.equal(dataset[(epoch, i)].image, still[(0, i)].image) for epoch in range(4) for i in range(6)]

    assert flips(0) == flips(0)
    assert flips(0) != flips(1)
    assert 0 < sum(flips(0)) < 24
    assert flips(0)[:6] != flips(0)[6:12]


def test_crowds_are_no_targets(coco_root: Path) -> None:
    coco = load(coco_root, "val")
    crowded = DetectionDataset(coco, LABELS, 200, 400, train=True)[(0, 1)]
    assert len(coco.annotations[510]) == 2
    assert crowded.labels.tolist() == [2]


@pytest.mark.parametrize("flip_p", [0.0, 1.0])
def test_boxes_that_collapse_in_float32_are_dropped_with_label_and_mask(coco_root: Path, flip_p: float) -> None:
    coco = load(coco_root)
    good, other = coco.annotations[0]
    x, y, w, h = good["bbox"]
    good["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    thin = {**good, "category_id": 7, "bbox": [79.9999999, y, 1e-7, h], "segmentation": [[9, 0, 9, 9, 0, 9]]}
    coco = replace(coco, annotations={**coco.annotations, 0: [thin, good, {**other, "bbox": [79.9999, y, 1e-4, h]}]})
    plain, masked = (
        DetectionDataset(coco, LABELS, 40, 1000, train=True, flip_p=flip_p, masks=masks)[(0, 0)]
        for masks in (False, True)
    )
    for sample in (plain, masked):
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.labels.tolist(), len(sample.boxes)) == ([2], 1)
    assert masked.masks is not None
    assert masked.masks.shape[0] == 1
    x0, y0, x1, y1 = masked.boxes[0].round().int().tolist()
    assert masked.masks[0, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()


def test_a_broken_training_image_is_replaced_and_told(own_root: Path) -> None:
    (own_root / "images" / "train_2.png").write_bytes(b"no picture")
    dataset = DetectionDataset(load(own_root), LABELS, 200, 400, train=True)
    sample = dataset[(0, 2)]
    assert sample.position != 2
    assert "train_2.png" in sample.unreadable[0]
    assert torch.equal(sample.image, dataset[(0, 2)].image)
    assert torch.equal(sample.boxes, dataset[(0, sample.position)].boxes)


def test_only_broken_images_end_in_an_empty_sample(own_root: Path) -> None:
    for path in (own_root / "images").iterdir():
        path.write_bytes(b"no picture")
    sample = DetectionDataset(load(own_root), LABELS, 200, 400, train=True)[(0, 0)]
    assert sample.image.numel() == 0
    assert len(sample.unreadable) == MAX_REPLACEMENTS
    alone = DetectionDataset(load(own_root), LABELS, 200, 400, train=False)[(0, 3)]
    assert (alone.image.numel(), alone.position, len(alone.unreadable)) == (0, 3, 1)


def test_a_picture_that_was_turned_after_annotation_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((80, 96, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(CodoError, match=r"is 96 x 80 \(turned, as its EXIF block .*\), its JSON entry says 80 x 96"):
        read_image(CocoImage(1, "a.png", tmp_path / "a.png", 80, 96), 200, 400)
    Image.fromarray(np.zeros((384, 288, 3), np.uint8)).save(tmp_path / "a.jpg")
    for size, said in (((384, 288), r"is 288 x 384 \(turned"), ((288, 300), "is 288 x 384, its JSON")):
        with pytest.raises(CodoError, match=said):  # the file's own size, though less of it was decoded
            read_image(CocoImage(1, "a.jpg", tmp_path / "a.jpg", *size), 40, 80)


@pytest.mark.parametrize("size", [(1000, 37), (333, 1001), (640, 480)])
def test_reduced_jpeg_decoding_is_no_reason_to_refuse(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / "a.jpg")
    pixels = read_image(CocoImage(1, "a.jpg", tmp_path / "a.jpg", *size), 20, 60)
    assert max(pixels.shape[:2]) <= 60
    assert min(pixels.shape[:2]) <= 20


def test_fractions_are_nested_seeded_and_never_empty(coco_root: Path) -> None:
    coco = load(coco_root)
    ids = [[i.id for i in take_fraction(coco, f, seed=3).images] for f in (0.01, 0.34, 0.67, 1.0)]
    assert [len(i) for i in ids] == [1, 2, 4, 6]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(ids))
    some = {tuple(i.id for i in take_fraction(coco, 0.5, seed).images) for seed in range(8)}
    assert len(some) > 1


def test_labels_number_the_data_sets_own_ids(coco_root: Path) -> None:
    train = load(coco_root)
    assert label_map(train, load(coco_root, "val")) == LABELS
    for categories, message in (({7: "cat"}, "calls it"), ({8: "cat"}, "does not list it")):
        with pytest.raises(CodoError, match=message):
            label_map(train, CocoDataset([], {}, categories, {}))


def test_every_epoch_sees_every_image_once_and_can_be_entered_midway() -> None:
    plan = list(batches(images=7, batch_size=3, seed=1, start=0, end=8))
    assert [len(batch) for batch in plan] == [3, 3, 1, 3, 3, 1, 3, 3]
    orders = []
    for epoch in range(2):
        keys = [key for batch in plan[3 * epoch : 3 * epoch + 3] for key in batch]
        assert sorted(keys) == [(epoch, i) for i in range(7)]
        orders.append([i for _, i in keys])
    assert orders[0] != orders[1]
    for start in range(8):
        assert list(batches(7, 3, 1, start, 8)) == plan[start:]
    assert plan != list(batches(7, 3, 2, 0, 8))


def test_the_fingerprint_follows_content_and_not_the_folder(coco_root: Path, own_root: Path) -> None:
    before = fingerprint_of(load(coco_root))
    assert fingerprint_of(load(own_root)) == before
    content = json.loads((own_root / "instances_train.json").read_text())

    def changed(field: str, index: int, name: str, value: object) -> bool:
        other = json.loads(json.dumps(content))
        other[field][index][name] = value
        (own_root / "instances_train.json").write_text(json.dumps(other))
        return fingerprint_of(load(own_root)) != before

    x, *rest = content["annotations"][0]["bbox"]
    assert not changed("annotations", 0, "bbox", [x, *rest])
    assert changed("annotations", 0, "bbox", [x + 1, *rest])
    assert changed("annotations", 0, "area", 7)  # decides what counts as small
    assert changed("images", 0, "width", content["images"][0]["width"] + 1)  # boxes are scaled by it


def test_facts_are_counted(make_config: Callable[..., TransferConfig]) -> None:
    data = load_data(make_config())
    expected = {"name": "squares", "train_images": 6, "train_boxes": 10, "train_images_without_boxes": 1}
    assert expected == {key: data.facts[key] for key in expected}
    assert (data.facts["val_images"], data.facts["classes"]) == (3, 2)
    assert data.facts["layout"] == "simple layout"


def test_paths_can_be_given_one_by_one(make_config: Callable[..., TransferConfig], coco_root: Path) -> None:
    files = {f"{split}_json": str(coco_root / f"instances_{split}.json") for split in ("train", "val")}
    by_hand = load_data(make_config(data={"root": None, **files, "images": str(coco_root / "images")}))
    assert by_hand.fingerprint == load_data(make_config()).fingerprint
    swapped = load_data(make_config(data={"val_json": files["train_json"]}))
    assert len(swapped.val.images) == 6
    with pytest.raises(CodoError, match="elsewhere"):
        load_data(make_config(data={"val_images": "elsewhere"}))


def test_a_set_without_boxes_is_refused(make_config: Callable[..., TransferConfig], own_root: Path) -> None:
    content = json.loads((own_root / "instances_train.json").read_text())
    (own_root / "instances_train.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(CodoError, match=r"6 training images .* have no boxes$"):
        load_data(make_config(data={"root": str(own_root)}))
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (own_root / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(CodoError, match=r"have no boxes \(10 x crowd, which is no object's box\)$"):
        load_data(make_config(data={"root": str(own_root)}))
    for annotation in content["annotations"]:
        annotation["image_id"] = 99
    (own_root / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(CodoError, match=r"have no boxes \(10 x annotation for an image that is not listed\)$"):
        load_data(make_config(data={"root": str(own_root)}))


def test_normalised_boxes_are_refused(make_config: Callable[..., TransferConfig], own_root: Path) -> None:
    content = json.loads((own_root / "instances_train.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / 100 for value in annotation["bbox"]]
    (own_root / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(CodoError, match=r"10 of 10 boxes lie within the first pixel: are they normalised"):
        load_data(make_config(data={"root": str(own_root)}))


def test_images_that_are_trained_on_and_evaluated_on_are_counted(
    make_config: Callable[..., TransferConfig], own_root: Path
) -> None:
    assert load_data(make_config(data={"root": str(own_root)})).facts["val_images_trained_on"] == 0
    shutil.copy(own_root / "instances_train.json", own_root / "instances_val.json")
    assert load_data(make_config(data={"root": str(own_root)})).facts["val_images_trained_on"] == 6
