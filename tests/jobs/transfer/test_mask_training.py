"""Masks from the annotations to the metrics; the other detectors on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection import FasterRCNN, MaskRCNN

from codo.config.transfer import TransferConfig
from codo.data.coco import load_coco
from codo.errors import CodoError
from codo.jobs.transfer import resume, transfer
from codo.jobs.transfer.data import NO_MASK, load_data
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.detectors import MaskRCNNDetector, build_detector
from codo.jobs.transfer.evaluate_run import evaluate_run
from codo.jobs.transfer.hardware import hardware_of

Make = Callable[..., TransferConfig]
LABELS = {7: 1, 90: 2}


def rewrite(root: Path, split: str, change: Callable[[dict[str, Any], int], None]) -> None:
    """Change every annotation of a split: `change(annotation, its number)`."""
    file = root / f"instances_{split}.json"
    content = json.loads(file.read_text())
    for n, annotation in enumerate(content["annotations"]):
        change(annotation, n)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("side", "flip"), [(200, False), (200, True), (40, False), (40, True)])
def test_masks_follow_their_boxes(masked_root: Path, side: int, flip: bool) -> None:
    """Polygons and both RLEs; shrunk and mirrored."""
    coco = load_coco(masked_root / "instances_train.json", masked_root / "images")
    data = DetectionDataset(coco, LABELS, side, 400, train=True, flip_p=float(flip), masks=True)
    seen = 0
    for i in range(len(data)):
        sample = data[(0, i)]
        assert sample.masks is not None
        assert sample.masks.dtype == torch.uint8
        assert sample.masks.shape == (len(sample.boxes), *sample.image.shape[1:])
        for mask, box in zip(sample.masks, sample.boxes, strict=True):
            ys, xs = mask.nonzero(as_tuple=True)
            around = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            torch.testing.assert_close(around, box, atol=1.01, rtol=0)
            seen += 1
    assert seen == 9  # one of ten has no mask
    assert DetectionDataset(coco, LABELS, side, 400, train=True)[(0, 0)].masks is None


def test_mask_rcnn_learns_masks(make_config: Make, masked_root: Path, tmp_path: Path) -> None:
    """Overfits the squares: their masks come out where they are."""
    optim = {"epochs": 36, "batch_size": 6, "lr": 0.1, "warmup_iterations": 5, "eval_every": 36, "flip_p": 0.0}
    own = {"root": str(masked_root), "val_json": str(masked_root / "instances_train.json")}
    result = transfer(make_config(detector="mask_rcnn", data=own, optim=optim), tmp_path / "run")
    summary = result.summary
    assert summary["metrics"]["AP50"] > 60
    assert summary["mask_metrics"]["AP50"] > 60
    assert list(summary["mask_metrics"]) == list(summary["metrics"])
    assert list(summary["mask_errors"]) == list(summary["errors"])
    assert summary["curve"][-1]["mask_AP"] == summary["mask_metrics"]["AP"]
    assert {"AP", "mask_AP", "name", "category_id"} == summary["per_class"][0].keys()
    assert summary["data"]["skipped"]["train"] == {NO_MASK: 1}
    assert summary["data"]["train_boxes"] == 9
    best = max(json.loads((result.path / "predictions.json").read_text()), key=lambda r: r["score"])
    x, y, w, h = best["bbox"]
    inside = coco_mask.decode(best["segmentation"])[round(y) : round(y + h), round(x) : round(x + w)]
    assert inside.mean() > 0.7
    assert int(inside.sum()) > 0.8 * int(coco_mask.area(best["segmentation"]))


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet", "fcos"])
def test_every_detector_trains_and_is_evaluated(
    make_config: Make, masked_root: Path, tmp_path: Path, detector: str
) -> None:
    config = make_config(detector=detector, data={"root": str(masked_root)}, optim={"epochs": 1, "lr": 0.005})
    summary = transfer(config, tmp_path / "run").summary
    assert summary["detector"] == detector
    assert ("mask_metrics" in summary) == (detector == "mask_rcnn")
    assert summary["metrics"]["AP"] is not None


SMALL = {
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 8,
    "box_detections_per_img": 5,
}


def own_mask_rcnn(backbone: Any, classes: int, detection: Any) -> Any:
    """A user's own detector: Mask R-CNN as torchvision makes it."""
    return MaskRCNN(backbone, classes + 1, min_size=detection.min_size, max_size=detection.max_size, **SMALL)


own_mask_rcnn.kinds = ("bbox", "segm")  # type: ignore[attr-defined]


def own_box_detector(backbone: Any, classes: int, detection: Any) -> Any:
    return FasterRCNN(backbone, classes + 1, min_size=detection.min_size, max_size=detection.max_size, **SMALL)


@pytest.mark.parametrize("name", ["own_mask_rcnn", "own_box_detector"])
def test_a_detector_of_ones_own_gets_the_masks_that_it_declares(
    make_config: Make, masked_root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And, where bf16 is there, fp32 unless bf16 is asked for: its heads need not hand on float32."""
    monkeypatch.setattr("codo.runs.hardware.has_bf16", lambda device: True)
    config = make_config(
        detector=f"{Path(__file__).resolve()}:{name}",
        data={"root": str(masked_root)},
        optim={"epochs": 1},
        run={"precision": "auto"},
    )
    result = transfer(config, tmp_path / "run")
    if name == "own_box_detector":
        assert evaluate_run(result.path)["metrics"] == result.summary["metrics"]
        resume(result.path, {"optim.epochs": 2})
        now = json.loads((result.path / "environment.json").read_text())
        assert all("fp32" in environment["hardware"] for environment in (now, *now["earlier"]))
        assert hardware_of(make_config(run={"precision": "auto"})).precision == "bf16"
        asked = config.run.model_copy(update={"precision": "bf16"})
        assert hardware_of(config.model_copy(update={"run": asked})).precision == "bf16"
    assert ("mask_metrics" in result.summary) == (name == "own_mask_rcnn")
    losses = json.loads((result.path / "metrics.jsonl").read_text().splitlines()[0])
    assert ("loss_mask" in losses) == (name == "own_mask_rcnn")


def test_an_image_without_masks_can_be_learnt_from(make_config: Make) -> None:
    detector = build_detector(make_config(detector="mask_rcnn"), 2).train()
    assert isinstance(detector, MaskRCNNDetector)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 80, dtype=torch.uint8),
    }
    losses = detector([torch.rand(3, 64, 80)], [empty])
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0
    norms = [buffer for name, buffer in detector.named_buffers() if "running" in name]
    assert norms
    assert all(buffer.isfinite().all() for buffer in norms)


def test_data_without_masks_are_refused(make_config: Make, masked_root: Path) -> None:
    def load(detector: str = "mask_rcnn") -> Any:
        return load_data(make_config(detector=detector, data={"root": str(masked_root)}))

    before = load().fingerprint, load("faster_rcnn").fingerprint
    rewrite(masked_root, "train", lambda a, n: a.get("segmentation") and a.update(segmentation=[[0, 0, 9, 0, 9, 9]]))
    after = load().fingerprint, load("faster_rcnn").fingerprint
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)
    rewrite(masked_root, "val", lambda a, n: n == 2 and a.update(segmentation={"size": [80, 96], "counts": [7]}))
    with pytest.raises(CodoError, match=r"instances_val\.json: annotation 2: .*add up to 7 pixels"):
        load()
    load("faster_rcnn")
    rewrite(masked_root, "val", lambda a, n: a.pop("segmentation", None))
    with pytest.raises(CodoError, match=r"instances_val\.json has no masks, which the detector learns"):
        load()


def test_masks_of_a_flipped_image_are_contiguous(masked_root: Path) -> None:
    coco = load_coco(masked_root / "instances_train.json", masked_root / "images")
    sample = DetectionDataset(coco, LABELS, 200, 400, train=True, flip_p=1.0, masks=True)[(0, 0)]
    assert sample.masks is not None
    assert sample.masks.is_contiguous()
    assert np.asarray(sample.masks).max() == 1
