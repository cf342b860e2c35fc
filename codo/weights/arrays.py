"""Pickles of arrays (detectron2's `.pkl`), read without running anything that they name."""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codo.errors import CodoError

_TYPE = re.compile(r"[fiu][1248]|b1")


def read_arrays(path: Path) -> Any:
    """Unpickle a file of arrays in built-in containers, those that Python 2 wrote too.

    The unpickler knows NumPy's arrays, types and scalars, and ordered dicts; for these it has stand-ins of its own,
    which check what they are given. Whatever else a file names is refused, and never imported.

    Raises:
        CodoError: the pickle names anything else, or is broken.
    """
    try:
        with open(path, "rb") as file:
            return _plain(_ArrayUnpickler(file, encoding="latin1").load())
    except _Refused as error:
        raise CodoError(f"weights: {path} is refused: {error}; only arrays, numbers and texts are read") from None
    except Exception as error:  # a broken pickle raises anything
        told = str(error).strip().split("\n")[0]
        raise CodoError(f"weights: {path} is not a whole pickle of arrays: {told or type(error).__name__}") from error


class _Refused(pickle.UnpicklingError):
    """The file asks for what is not an array."""


class _Type:
    """Stands in for `numpy.dtype`."""

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(name, str) or not _TYPE.fullmatch(name):
            raise _Refused(f"it has an array of type {name!r:.20}")
        self.name, self.big = name, False

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise _Refused("it has an array type that is not plain")
        self.big = state[1] == ">"

    def array(self, data: Any, shape: Any, fortran: bool) -> np.ndarray:
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            raise _Refused("it has an array without data")
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _Refused("it has an array of no shape")
        kind = np.dtype(self.name).newbyteorder(">" if self.big else "<")
        if math.prod(shape) * kind.itemsize != len(data):
            raise _Refused(f"it has an array of shape {shape!r:.40} with {len(data)} bytes")
        values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
        return values.astype(kind.newbyteorder("="))  # a copy, writable, in the machine's order


class _Array:
    """Stands in for an array until its state is read."""

    value: np.ndarray

    def __init__(self, kind: Any, *_: Any) -> None:
        if kind is not _ARRAY_TYPE:
            raise _Refused("it rebuilds what is no array")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise _Refused("it has an array that is not plain")
        _, shape, kind, fortran, data = state
        self.value = kind.array(data, shape, bool(fortran))


def _buffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Stand in for `numpy._core.numeric._frombuffer` (protocol 5)."""
    if not isinstance(kind, _Type) or order not in ("C", "F") or axes is not None:
        raise _Refused("it has an array that is not plain")
    return kind.array(data, shape, order == "F")


def _scalar(kind: Any, data: Any) -> Any:
    """Stand in for `numpy.core.multiarray.scalar`."""
    if not isinstance(kind, _Type):
        raise _Refused("it has a number that is not plain")
    return kind.array(data, (), False)[()]


def _latin1(text: Any, encoding: Any) -> bytes:
    """Stand in for `_codecs.encode`, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("it encodes what is no data")
    return text.encode("latin1")


def _bytes() -> bytes:
    """Stand in for `bytes()`, by which protocol 2 writes no bytes."""
    return b""


class _Maker:
    """What the unpickler is given for a name: it can be called, and a pickle cannot set attributes of it."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes what is no array")


_ARRAY_TYPE = _Maker(_Array)
"""For `numpy.ndarray`, which a pickle names and does not call."""

_ADMITTED = {
    ("numpy", "dtype"): _Maker(_Type),
    ("numpy", "ndarray"): _ARRAY_TYPE,
    ("collections", "OrderedDict"): _Maker(OrderedDict),
    ("_codecs", "encode"): _Maker(_latin1),
    ("__builtin__", "bytes"): _Maker(_bytes),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Maker(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Maker(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Maker(_buffer) for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"it wants {module}.{name}")
        return _ADMITTED[module, name]


def _plain(value: Any) -> Any:
    """Take the arrays out of their stand-ins."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
