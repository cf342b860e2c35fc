"""How far codo's approximations are from the classic operations: pixel errors over real images and drawn parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as F

from codo.augment import ColourJitter, ColourParameters, denormalise, finish_views
from codo.data.images import decode, resize

SIDE = 256


def errors(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Describe the absolute differences of pairs of pictures, in levels of 255."""
    differences = np.concatenate([np.abs(a.astype(np.float32) - b).ravel() for a, b in pairs])
    return {
        "mean": float(differences.mean()),
        "p95": float(np.percentile(differences, 95)),
        "max": float(differences.max()),
    }


def levels(finished: Tensor) -> np.ndarray:
    """Undo the normalisation of `(N, 3, S, S)`: `(N, S, S, 3)` in levels of 255."""
    return (denormalise(finished) * 255).permute(0, 2, 3, 1).numpy()


def by_pil(image: Image.Image, drawn: ColourParameters) -> Image.Image:
    """Colour a picture with one view's draw by torchvision's operations on PIL images."""
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for which in drawn.order.tolist():
        image = steps[which](image, float(drawn.factors[which]))
    return F.to_grayscale(image, 3) if drawn.grey else image


def coloured(images: Sequence[np.ndarray], jitter: ColourJitter, *, exact: bool) -> Iterator[tuple[np.ndarray, Any]]:
    """Colour images both ways: codo's and PIL's."""
    for i, pixels in enumerate(images):
        drawn = jitter(np.random.default_rng(i))
        ours = finish_views(torch.from_numpy(pixels)[None], ColourParameters.stack([drawn]), exact=exact)
        yield levels(ours)[0], np.asarray(by_pil(Image.fromarray(pixels), drawn))


def blurred(images: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blur images both ways: codo's Gaussian and Pillow's, which is three boxes."""
    plain = ColourJitter(p=0, grey_p=0, blur_p=0, flip_p=0)(np.random.default_rng(0))
    for i, pixels in enumerate(images):
        sigma = random.Random(i).uniform(0.1, 2)
        drawn = ColourParameters.stack([plain._replace(sigma=torch.tensor(sigma))])
        ours = finish_views(torch.from_numpy(pixels)[None], drawn)
        yield levels(ours)[0], np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def measure(small: Sequence[Path], large: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Measure all approximations.

    Args:
        small: images that are coloured and blurred, as 256 px squares.
        large: camera-sized JPEGs, for the decoder and the resize.
    """
    squares = [resize(decode(path), SIDE, SIDE) for path in small]
    colour = ColourJitter(p=1, grey_p=0.2, blur_p=0, flip_p=0)
    full = {path: decode(path) for path in large}
    scaled = {path: decode(path, min_side=SIDE * 15 // 16) for path in large}
    halved = [path for path in large if scaled[path].shape != full[path].shape]

    def pil(pixels: np.ndarray, **how: Any) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), **how))

    def bilinear(pixels: np.ndarray, antialias: bool) -> np.ndarray:
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        return F.resize(planes, [SIDE, SIDE], antialias=antialias).permute(1, 2, 0).numpy()

    return {
        "one affine colour map, against PIL's operations": errors(coloured(squares, colour, exact=False)),
        "the same without hue": errors(coloured(squares, ColourJitter(hue=0, p=1, blur_p=0, flip_p=0), exact=False)),
        "colour.exact, against PIL's operations": errors(coloured(squares, colour, exact=True)),
        "Gaussian blur, against Pillow's": errors(blurred(squares)),
        f"scaled decode ({len(halved)} of {len(large)} files), against full decode": errors(
            (resize(scaled[p], SIDE, SIDE), resize(full[p], SIDE, SIDE)) for p in halved
        ),
        "resize, against Pillow's bilinear": errors(
            (resize(p, SIDE, SIDE), pil(p, resample=Image.Resampling.BILINEAR)) for p in full.values()
        ),
        "a resize without anti-aliasing (codo's has it), against one with": errors(
            (bilinear(p, False), bilinear(p, True)) for p in full.values()
        ),
    }


def table(measured: dict[str, dict[str, float]]) -> list[str]:
    """Write the errors as a Markdown table."""
    lines = ["| approximation | mean | 95th percentile | largest |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {e['mean']:.2f} | {e['p95']:.1f} | {e['max']:.0f} |" for name, e in measured.items()]
    return lines
