"""Colour, blur and flip of a view: their draws, and the colour operations as one affine map.

Brightness, contrast, saturation, hue and greyscale are affine in RGB, so that those of one view, in their drawn order,
are one 3x4 matrix. Against torchvision's operations one after the other this leaves out the clamping to [0, 1] between
two of them, and turns the hue about the grey axis (in YIQ) instead of through HSV; `finish_views(exact=True)` does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codo.augment.crop import uniform

GREY = (0.299, 0.587, 0.114)
"""ITU-R 601 luma, as PIL and torchvision have it."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

UNCHANGED = (1.0, 1.0, 1.0, 0.0)
"""The factors that change nothing."""


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
        return ColourParameters(*(column[0] for column in self.draw([rng])))

    def draw(self, rngs: Sequence[np.random.Generator]) -> ColourParameters:
        """Draw the parameters of N views, one from each generator."""
        strengths = (self.brightness, self.contrast, self.saturation)
        factors, orders, greys, sigmas, flips = [], [], [], [], []
        for rng in rngs:
            # Always the same draws, used or not: a switch moves no other number.
            changed, grey, blurred, flipped, *spread, turn = rng.random(8).tolist()
            order, sigma = rng.permutation(4), uniform(rng, *self.blur_sigma)
            drawn = [_factor(u, s) for u, s in zip(spread, strengths, strict=True)]
            factors.append((*drawn, (2 * turn - 1) * self.hue) if changed < self.p else UNCHANGED)
            orders.append(order)
            greys.append(grey < self.grey_p)
            sigmas.append(sigma if blurred < self.blur_p else 0.0)
            flips.append(flipped < self.flip_p)
        return ColourParameters(
            torch.tensor(factors, dtype=torch.float32),
            torch.from_numpy(np.stack(orders)),
            torch.tensor(greys),
            torch.tensor(sigmas, dtype=torch.float32),
            torch.tensor(flips),
        )


def _factor(share: float, strength: float) -> float:
    """Spread `share` of [0, 1] over max(0, 1 - strength) to 1 + strength."""
    return (2 * share - 1) * strength + 1 if strength <= 1 else share * (1 + strength)


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

    steps = operations[torch.arange(n, device=factors.device)[:, None], parameters.order]
    contrast = (1 - factors[:, CONTRAST, None]) * (parameters.order == CONTRAST)
    mean = torch.cat([mean, mean.new_ones(n, 1)], 1)[:, :, None]
    affine = torch.eye(3, 4, device=factors.device).expand(n, 3, 4)  # the matrix, and the offset beside it
    for step, share in zip(steps.unbind(1), contrast.unbind(1), strict=True):
        # Contrast keeps the mean grey of the picture as it is at that moment.
        keep = share[:, None] * (grey @ (affine @ mean))
        affine = step @ affine
        affine[:, :, 3] += keep
    affine = torch.where(parameters.grey[:, None, None], to_grey @ affine, affine)
    return affine[:, :, :3], affine[:, :, 3]


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
