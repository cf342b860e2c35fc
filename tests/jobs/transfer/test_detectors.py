from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList
from transfer_parts import ARCHITECTURE, detector_config

from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.norms import batch_norms

SIZES = DetectionSection(min_size=(64,), max_size=96, roi_batch_size=8)
TARGETS = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2])}]


def build(norm: str = "bn") -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_detector(detector_config(ARCHITECTURE, SIZES, norm=norm), 2)


def images() -> list[torch.Tensor]:
    return [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1))]


def test_names_and_shapes_are_torchvisions() -> None:
    reference = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    ours = build_detector(detector_config(ArchitectureSection()), 90).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in reference.items()}


def test_torchvisions_weights_give_torchvisions_detections() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96,
            box_score_thresh=0.0, rpn_post_nms_top_n_test=30,
        )  # fmt: skip
    sizes = DetectionSection(min_size=(64,), max_size=96, score_threshold=0.0, rpn_post_nms_test=30)
    ours = build_detector(detector_config(ArchitectureSection(), sizes), 2)
    ours.load_state_dict(reference.state_dict())
    with torch.inference_mode():
        theirs, mine = reference.eval()(images())[0], ours.eval()(images())[0]
    assert len(theirs["boxes"]) > 0
    # RoIAlign's sums are taken in another order than in torchvision's kernel.
    for name, tolerance in {"boxes": 1e-3, "scores": 1e-4, "labels": 0}.items():
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=tolerance)


def test_trained_norms_learn_and_frozen_ones_do_not() -> None:
    for norm, moves in (("bn", True), ("frozen_bn", False)):
        detector = build(norm).train()
        body, fpn = (next(iter(batch_norms(p).values())) for p in (detector.backbone.body, detector.backbone.fpn))
        sum(detector(images(), TARGETS).values()).backward()
        assert bool(body.running_mean.any()) == moves
        assert (body.weight.grad is not None) == moves
        assert fpn.running_mean.any()
        assert fpn.weight.grad is not None


def test_frozen_norms_keep_the_names() -> None:
    assert build("bn").state_dict().keys() == build("frozen_bn").state_dict().keys()


def test_nothing_to_freeze_is_refused() -> None:
    architecture = ArchitectureSection(backbone="convnext_atto", fpn_channels=16)
    with pytest.raises(CodoError, match="convnext_atto has no batch norm"):
        build_detector(detector_config(architecture, SIZES, norm="frozen_bn"), 2)


def test_a_detector_of_ones_own_that_cannot_be_called_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "number.py").write_text("X = 3\n")
    with pytest.raises(CodoError, match=r"^number\.py:X: 'int' object is not callable"):
        build_detector(detector_config(ARCHITECTURE, SIZES, detector="number.py:X"), 2)


def test_pooling_does_not_depend_on_the_first_image() -> None:
    """torchvision infers strides from the first batch: 40 px padded to 64 reads as another stride."""
    large, boxes = (
        torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)),
        torch.tensor([[4.0, 4, 50, 44]]),
    )
    fresh, used = build().eval(), build().eval()
    with torch.inference_mode():
        used.roi_heads.box_roi_pool(used.backbone(torch.rand(1, 3, 64, 64)), [boxes / 2], [(40, 40)])
        torch.testing.assert_close(used.box_features(large, boxes), fresh.box_features(large, boxes))


def test_boxes_are_float32_under_bf16() -> None:
    detector = build()
    seen = {}
    hook = detector.roi_heads.box_head.register_forward_hook(
        lambda _, given, out: seen.update(out=out.dtype, given=given[0].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images(), TARGETS)
        detections = detector.eval()(images())[0]
    hook.remove()
    assert seen == {"out": torch.bfloat16, "given": torch.float32}
    assert detections["boxes"].dtype == torch.float32
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    scores, deltas = detector.roi_heads.box_predictor(torch.rand(1, 32))
    assert scores.dtype == deltas.dtype == torch.float32


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_anchors_are_the_same_under_bf16_as_in_fp32(detector: str) -> None:
    built = build_detector(detector_config(ARCHITECTURE, SIZES, detector=detector), 2)
    anchors = built.rpn.anchor_generator if hasattr(built, "rpn") else built.anchor_generator
    first = 4 if hasattr(built, "rpn") else 8
    wide = ImageList(torch.zeros(1, 3, 64, 1344), [(64, 1344)])
    levels = [torch.zeros(1, 1, max(64 // stride, 1), 1344 // stride) for stride in (first << i for i in range(5))]
    rounded = anchors(wide, [level.bfloat16() for level in levels])[0]
    exact = anchors(wide, levels)[0]
    shifts = exact.view(-1, anchors.num_anchors_per_location()[0], 4)[: 1344 // first, 0, 0].diff()
    assert set(shifts.tolist()) == {first}
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact)


def test_retinanet_learns_boxes_as_torchvisions_second_version() -> None:
    reference = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).head.regression_head
    built = build_detector(detector_config(ARCHITECTURE, SIZES, detector="retinanet"), 2).head.regression_head
    assert built._loss_type == reference._loss_type == "giou"


def test_an_image_without_boxes_can_be_learnt_from() -> None:
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    losses = build().train()(images(), empty)
    assert losses["loss_box_reg"] == 0
    assert losses["loss_classifier"] > 0
