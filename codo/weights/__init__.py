"""Weights in files: codo's own and other libraries', read safely and under one set of names."""

from codo.weights.keys import GROUPS
from codo.weights.pretrained import Pretrained, check_architecture, read_architecture, read_pretrained, weights_path

__all__ = ["GROUPS", "Pretrained", "check_architecture", "read_architecture", "read_pretrained", "weights_path"]
