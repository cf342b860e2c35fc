"""Weights in files: codo's own and other libraries', read safely and under one set of names."""

from codo.weights.keys import GROUPS
from codo.weights.source import Source, check_architecture, read_architecture, read_source, weights_path

__all__ = ["GROUPS", "Source", "check_architecture", "read_architecture", "read_source", "weights_path"]
