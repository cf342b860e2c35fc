"""Weights out: a run as torchvision, timm, detectron2 and mmdetection read it."""

from codo.export.job import FORMATS, Exported, export_run

__all__ = ["FORMATS", "Exported", "export_run"]
