"""From composites to what the encoder takes: flip, colour, blur and normalisation of whole batches of views.

On a GPU all views at once. On a processor one after the other, so that the pixels of a view stay in its cache; measured
several times faster there. Both compute the same, but for the far ends of the blur (`REACH`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from codo.augment.colour import ColourParameters, colour_matrix
from codo.augment.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

REACH = 3.0
"""Sigmas after which the blur's kernel ends on a processor; what is cut off is under .3 of 255 at any edge."""

TILE = 8
"""Rows of an image blurred by one small matrix product; larger tiles multiply more zeros."""


def finish_views(views: Tensor, parameters: ColourParameters, *, exact: bool = False) -> Tensor:
    """Colour, blur, flip and normalise views.

    Args:
        views: `(N, S, S, 3)` uint8 RGB composites; S a multiple of 8.
        parameters: of N views, on the same device.
        exact: colour by torchvision's operations, one after the other and clamped in between, instead of by one affine
            map a view; about ten times slower on a processor.

    Returns:
        `(N, 3, S, S)` float32 in channels-last memory, normalised with ImageNet's mean and std.
    """
    if exact:
        return _finish_all(parameters, _colour_exactly(views, parameters))
    if views.device.type != "cpu":
        return _finish_all(parameters, _colour_all(views, parameters))
    return _finish_each(views, parameters)


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


def _colour_all(views: Tensor, parameters: ColourParameters) -> Tensor:
    """Colour all views at once: `(N, 3, S, S)` in [0, 1]."""
    pixels = views.flatten(1, 2).float() / 255  # (N, S*S, 3)
    matrix, offset = colour_matrix(parameters, pixels.mean(1))
    pixels = torch.baddbmm(offset[:, None], pixels, matrix.transpose(1, 2)).clamp_(0, 1)
    return pixels.view(views.shape).permute(0, 3, 1, 2)


def _colour_exactly(views: Tensor, parameters: ColourParameters) -> Tensor:
    """Colour view by view as torchvision does: `(N, 3, S, S)` in [0, 1]."""
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    images = views.permute(0, 3, 1, 2).float() / 255
    rows = zip(parameters.factors.tolist(), parameters.order.tolist(), parameters.grey.tolist(), strict=True)
    for i, (factors, order, grey) in enumerate(rows):
        image = images[i]
        for which in order:
            if factors[which] != (0.0 if which == len(order) - 1 else 1.0):
                image = operations[which](image, factors[which])
        images[i] = F.rgb_to_grayscale(image, 3) if grey else image
    return images


def _finish_all(parameters: ColourParameters, images: Tensor) -> Tensor:
    """Blur, flip and normalise coloured images `(N, 3, S, S)` all at once."""
    blurred = parameters.sigma.nonzero()[:, 0]
    if len(blurred):
        images[blurred] = gaussian_blur(images[blurred], parameters.sigma[blurred])
    return normalise(torch.where(parameters.flip[:, None, None, None], images.flip(3), images))


def _finish_each(views: Tensor, parameters: ColourParameters) -> Tensor:
    """Finish views one after the other, on a processor."""
    count, side, _, channels = views.shape
    image, coloured = torch.empty(side, side * channels), torch.empty(side, side * channels)
    mean = torch.empty(count, side * channels)
    for view, row in zip(views.view(count, *image.shape), mean, strict=True):
        torch.mean(image.copy_(view), 0, out=row)
    mean = mean.view(count, side, channels).mean(1) / 255
    blocks, offsets, low, high = _normalised_colour(*colour_matrix(parameters, mean), side)
    blur = _Blur(side, channels, parameters.sigma)
    finished = torch.empty(views.shape, dtype=torch.float32)
    outs = finished.view(count, *image.shape)
    pixels = image.view(1, -1, blocks.shape[1])  # four at a time
    for i, (blurred, flip) in enumerate(zip(blur.radius, parameters.flip.tolist(), strict=True)):
        # The flip is done on bytes; it commutes with all that follows.
        image.copy_((views[i].flip(1) if flip else views[i]).view(image.shape))
        torch.baddbmm(offsets[i], pixels, blocks[i : i + 1], out=coloured.view(pixels.shape))
        torch.clamp(coloured, low, high, out=blur.source if blurred else outs[i])
        if blurred:
            blur(i, outs[i])
    return finished.permute(0, 3, 1, 2)


def _normalised_colour(matrix: Tensor, offset: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fold the scale of bytes and the normalisation into colour maps, four pixels wide (a matrix product likes that).

    Returns:
        Blocks `(N, 12, 12)` that rows of four pixels are multiplied with, offsets `(N, 1, 12)`, and what 0 and 1
        become, for a row of the image: `(3 S,)` each.
    """
    mean, std = (torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
    matrix, offset = matrix / (255 * std[:, None]), (offset - mean) / std
    block = torch.zeros(len(matrix), 4, 3, 4, 3)
    for i in range(4):
        block[:, i, :, i] = matrix.transpose(1, 2)
    low, high = (((bound - mean) / std).repeat(side) for bound in (0, 1))
    return block.view(-1, 12, 12), offset.repeat(1, 4)[:, None], low, high


class _Blur:
    """Blurs images of one size on a processor, in memory that is used again.

    Along rows it is a weighted sum of shifted images, down columns one small matrix product a tile. At the border the
    kernel is cut off and its weights renormalised.

    Args:
        side: S.
        channels: C.
        sigma: `(N,)` pixels, 0 for none; a call blurs with one of them.

    Attributes:
        source: `(S, C S)`, where the image to blur is written.
    """

    def __init__(self, side: int, channels: int, sigma: Tensor) -> None:
        self.radius = [math.ceil(REACH * s) for s in sigma.tolist()]
        self.channels, self.reach, width = channels, max(self.radius), side * channels
        place = torch.arange(-self.reach, self.reach + 1.0)
        kernel = torch.exp(place.square() / (-2 * sigma.clamp(min=1e-3).square()[:, None]))
        kernel *= place.abs() <= torch.tensor(self.radius)[:, None]
        kernel /= kernel.sum(1, keepdim=True)  # (N, 2 R + 1)
        at = torch.arange(side)[:, None] + place
        lines = kernel[:, None] * ((at >= 0) & (at < side))  # (N, S, 2 R + 1): what weighs in the image's own lines
        share = lines.sum(2)
        self.kernel, self.edge = kernel.tolist(), share.reciprocal().repeat_interleave(channels, 1)
        span = TILE + 2 * self.reach
        self.tiles = torch.zeros(len(sigma), side // TILE, TILE, span)
        diagonal = self.tiles.as_strided(
            (len(sigma), side // TILE, TILE, place.numel()), (side * span, TILE * span, span + 1, 1)
        )
        diagonal.copy_((lines / share[:, :, None]).view(diagonal.shape))
        wide = torch.zeros(side, width + 2 * self.reach * channels)
        self.shifted = [wide[:, j * channels : j * channels + width] for j in range(place.numel())]
        self.source = self.shifted[self.reach]
        self.tall = torch.zeros(side + 2 * self.reach, width)

    def __call__(self, number: int, out: Tensor) -> None:
        """Blur `source` with the sigma of this number into `out` `(S, C S)`."""
        radius, kernel = self.radius[number], self.kernel[number]
        side, width = out.shape
        first, last = self.reach - radius, self.reach + radius
        total = torch.mul(self.shifted[first], kernel[first], out=self.tall[self.reach : self.reach + side])
        for j in range(first + 1, last + 1):
            total.add_(self.shifted[j], alpha=kernel[j])
        border, edge = radius * self.channels, self.edge[number]
        if 2 * border < width:
            total[:, :border] *= edge[:border]
            total[:, -border:] *= edge[-border:]
        else:
            total *= edge
        windows = self.tall.as_strided(
            (side // TILE, TILE + 2 * radius, width), (TILE * width, width, 1), first * width
        )
        tiles = self.tiles[number, :, :, first : first + TILE + 2 * radius]
        torch.bmm(tiles, windows, out=out.view(side // TILE, TILE, width))
