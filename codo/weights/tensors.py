"""Files of tensors: safetensors, torch's, and pickles of arrays; without running what a file names."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codo.errors import CodoError
from codo.runs.weights_file import read_weights
from codo.weights.arrays import read_arrays

WRAPPINGS = ("model", "state_dict", "model_state_dict")
"""Keys below which training scripts keep a state dict (torchvision and detectron2; MoCo, Lightning, mmengine)."""
PREFIXES = ("module.", "_orig_mod.")
"""Of every name in what DistributedDataParallel and torch.compile wrapped."""

_COMPANY = ("argparse", "lightning", "mmcv", "mmengine", "numpy", "omegaconf", "pathlib", "pytorch_lightning", "typing")
"""Packages whose objects stand beside the tensors of a checkpoint (settings, histories); read as `_Inert`."""
_NAMED = {
    *("bool", "dict", "float", "int", "list", "object", "set", "str", "tuple", "getattr"),
    "collections.defaultdict",
}
"""Built-ins that such objects name: types (omegaconf), methods by getattr (mmengine). They too are read as `_Inert`."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file under their own names, out of the wrappings that training scripts put around them.

    Args:
        path: `.safetensors`; `.pkl`, a pickle of arrays; any other is torch's.

    Returns:
        The tensors, and the metadata of a safetensors file.

    Raises:
        CodoError: absent, broken, not readable without running code, or values that are not finite.
    """
    metadata: dict[str, str] = {}
    content: Any
    if path.suffix == ".safetensors":
        content, metadata = read_weights(path)
    elif path.suffix in (".pkl", ".pickle"):
        content = read_arrays(path)
    else:
        content = _torch_file(path)
    if not isinstance(content, dict):
        raise CodoError(f"weights: {path} holds a {type(content).__name__}; a state dict is expected")
    tensors = _unwrapped(content)
    if not tensors:
        raise CodoError(f"weights: there are no tensors in {path}; its keys are {', '.join(map(str, content))[:80]}")
    if odd := [name for name in tensors if not name.isprintable()]:
        raise CodoError(f"weights: {path} has a tensor whose name is no plain text: {odd[0]!a:.80}")
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise CodoError(f"weights: {path} has values that are not finite, e.g. in {broken[0]}")
    return tensors, metadata


def _torch_file(path: Path) -> Any:
    foreign = _foreign(path)
    # solo-learn's and mmengine's checkpoints hold settings and histories beside the tensors.
    company = [name for name in foreign if _is_company(name)]
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in company]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        # Of torch's own message nothing but the name is told: it advises to read the file in a way that runs code.
        refused = [name for name in foreign if name not in company] or re.findall(r"GLOBAL (\S+)", str(error))
        told = "it is cut off, or not what torch.save writes"
        if refused:
            told = f"it wants {refused[0]}; save its state_dict alone"
        elif isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            told = error.strerror or told  # of the disk
        raise CodoError(f"weights: {path} is not a file of plain tensors (weights_only): {told}") from error


def _is_company(name: str) -> bool:
    return name.split(".")[0] in _COMPANY or name.removeprefix("builtins.") in _NAMED


def _foreign(path: Path) -> list[str]:
    """List the names in a checkpoint that torch's weights_only unpickler refuses."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an old file of torch's, or none of its files: torch.load says so
        return []


class _Inert:
    """Takes the place of an object that is not needed; whatever it is built from, it does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unwrapped(content: dict[Any, Any]) -> dict[str, Tensor]:
    for key in WRAPPINGS:
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(name): _tensor(value) for name, value in content.items() if isinstance(value, Tensor | np.ndarray)}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
