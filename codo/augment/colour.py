"""Colour, blur, flip and normalisation: on whole views, batched on the device, with parameters drawn for each view.

Brightness, contrast, saturation, hue and greyscale are affine in RGB, so that those of one view, in their drawn order,
are one 3x4 matrix. Against torchvision's operations one after the other this leaves out the clamping to [0, 1] between
two of them, and turns the hue about the grey axis (in YIQ) instead of through HSV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

GREY = (0.299, 0.587, 0.114)
"""ITU-R 601 luma, as PIL and torchvision have it."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class ColourParameters(NamedTuple):
    """What was drawn for each of N views (arrays from one view's draw have no N).

    Attributes:
        factors: `(N, 4)` float32: brightness, contrast and saturation factors (1 changes nothing), hue in turns.
        order: `(N, 4)` int64: the order in which these four are applied.
        grey: `(N,)` bool: to greyscale.
        sigma: `(N,)` float32: blur in pixels, 0 for none.
        flip: `(N,)` bool: mirror left and right.
    """

    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    flip: Tensor

    @staticmethod
    def stack(views: list[ColourParameters]) -> ColourParameters:
        """Join draws along a new first dimension."""
        return ColourParameters(*(torch.stack(column) for column in zip(*views, strict=True)))

    def flatten(self) -> ColourParameters:
        """Join the first two dimensions."""
        return ColourParameters(*(column.flatten(0, 1) for column in self))

    def to(self, device: torch.device) -> ColourParameters:
        """Move to a device."""
        return ColourParameters(*(column.to(device, non_blocking=True) for column in self))


@dataclass(frozen=True)
class ColourJitter:
    """Draws the colour, blur and flip of one view.

    Args:
        brightness: b; the factor is U(max(0, 1 - b), 1 + b).
        contrast: likewise.
        saturation: likewise.
        hue: h; the hue turns by U(-h, h) of a full turn.
        p: probability of these four, in random order.
        grey_p: probability of greyscale.
        blur_p: probability of Gaussian blur.
        blur_sigma: bounds of its sigma, pixels.
        flip_p: probability of a horizontal flip.

    Source:
        MoCo v2, InsLoc.

    Example:
        >>> ColourJitter(p=0)(np.random.default_rng(0)).factors.tolist()  # nothing is changed
        [1.0, 1.0, 1.0, 0.0]
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.5

    def __call__(self, rng: np.random.Generator) -> ColourParameters:
        """Draw one view's parameters (tensors without the leading N)."""
        # Always the same draws, used or not: a switch moves no other number.
        chances, spread = rng.random(4), rng.uniform(-1, 1, 4)
        order, sigma = rng.permutation(4), rng.uniform(*self.blur_sigma)
        strength = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        factors = spread * strength + np.array([1, 1, 1, 0])
        if chances[0] >= self.p:
            factors = np.array([1.0, 1.0, 1.0, 0.0])
        return ColourParameters(
            torch.from_numpy(factors.astype(np.float32)),
            torch.from_numpy(order),
            torch.tensor(bool(chances[1] < self.grey_p)),
            torch.tensor(float(sigma) if chances[2] < self.blur_p else 0.0),
            torch.tensor(bool(chances[3] < self.flip_p)),
        )


def finish_views(views: Tensor, parameters: ColourParameters) -> Tensor:
    """Colour, blur, flip and normalise views.

    Args:
        views: `(N, S, S, 3)` uint8 RGB composites.
        parameters: of N views, on the same device.

    Returns:
        `(N, 3, S, S)` float32 in channels-last memory, normalised with ImageNet's mean and std.
    """
    pixels = views.flatten(1, 2).float() / 255  # (N, S*S, 3)
    matrix, offset = colour_matrix(parameters, pixels.mean(1))
    pixels = torch.baddbmm(offset[:, None], pixels, matrix.transpose(1, 2)).clamp_(0, 1)
    images = pixels.view(views.shape).permute(0, 3, 1, 2)
    blurred = parameters.sigma.nonzero()[:, 0]
    if len(blurred):
        images[blurred] = gaussian_blur(images[blurred], parameters.sigma[blurred])
    images = torch.where(parameters.flip[:, None, None, None], images.flip(3), images)
    return normalise(images)


def normalise(images: Tensor) -> Tensor:
    """Normalise RGB in [0, 1], `(N, 3, H, W)`, with ImageNet's mean and std."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def colour_matrix(parameters: ColourParameters, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Compose each view's colour operations into one affine map of RGB.

    Args:
        parameters: of N views.
        mean: `(N, 3)`, each view's mean RGB before any of them; contrast is relative to the mean grey.

    Returns:
        Matrices `(N, 3, 3)` and offsets `(N, 3)`: `rgb -> matrix @ rgb + offset`.
    """
    factors = parameters.factors
    n, one = len(factors), factors.new_ones(len(factors))
    identity = torch.eye(3, device=factors.device)
    grey = factors.new_tensor(GREY)
    to_grey = grey.expand(3, 3)
    scales = torch.stack([factors[:, BRIGHTNESS], factors[:, CONTRAST], factors[:, SATURATION], one], 1)
    operations = scales[:, :, None, None] * identity
    operations[:, SATURATION] += (1 - factors[:, SATURATION])[:, None, None] * to_grey
    operations[:, HUE] = _hue_rotation(factors[:, HUE])

    matrix, offset, rows = identity.expand(n, 3, 3), factors.new_zeros(n, 3), torch.arange(n, device=factors.device)
    for operation in parameters.order.T:
        step = operations[rows, operation]
        # Contrast keeps the mean grey of the picture as it is at that moment.
        mean_grey = (torch.einsum("nij,nj->ni", matrix, mean) + offset) @ grey
        keep = torch.where(operation == CONTRAST, (1 - factors[:, CONTRAST]) * mean_grey, 0.0)
        offset = torch.einsum("nij,nj->ni", step, offset) + keep[:, None]
        matrix = step @ matrix
    last = torch.where(parameters.grey[:, None, None], to_grey, identity)
    return last @ matrix, torch.einsum("nij,nj->ni", last, offset)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma, as two matrix products (a Gaussian is separable).

    At the border the kernel is cut off and its weights renormalised.

    Args:
        images: `(N, 3, S, S)` float.
        sigma: `(N,)` pixels, positive.
    """
    place = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    distance = (place[:, None] - place).square()
    kernel = torch.softmax(-distance / (2 * sigma[:, None, None].square()), dim=2)[:, None]
    return kernel @ images @ kernel.transpose(2, 3)


def _hue_rotation(turns: Tensor) -> Tensor:
    """Rotate chroma in YIQ by `turns` `(N,)` of a full turn: `(N, 3, 3)`."""
    to_yiq = turns.new_tensor([GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    # HSV's hue runs against the angle of (I, Q).
    angle = -2 * math.pi * turns
    rotation = torch.zeros(len(turns), 3, 3, device=turns.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq
