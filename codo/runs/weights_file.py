"""Weights as safetensors: tensors and string metadata, readable without running code."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codo.errors import CodoError
from codo.runs.files import atomic_path


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict atomically.

    Args:
        path: the file to be, `*.safetensors`.
        state: name -> tensor, on any device, in any memory format.
        metadata: strings that say what the weights are.

    Raises:
        CodoError: the file cannot be written; an older one stays.
    """
    # safetensors takes neither strided (channels-last) nor shared memory.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_weights` wrote, or any safetensors file.

    Returns:
        The state dict, in the processor's memory, and the metadata (empty when the file has none).

    Raises:
        CodoError: absent, truncated or not safetensors.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no mapping)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata alone.

    Raises:
        CodoError: as `read_weights`.
    """
    if not path.is_file():
        raise CodoError(f"no weights file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CodoError(f"{path} is not a whole safetensors file: {error}") from error
