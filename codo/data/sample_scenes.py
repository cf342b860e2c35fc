"""Pictures of the sample data: textured ground, shaded objects with shadows, and the faults of a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from codo.data.sample_shapes import CLASS_SHAPES, OTHER_SHAPES, SHAPES, silhouette
from codo.data.sample_textures import (
    CLASS_TEXTURES,
    OTHER_TEXTURES,
    TEXTURES,
    Field,
    background,
    blurred,
    object_colours,
    smooth_noise,
)

Picture = NDArray[np.float32]
"""`(H, W, 3)` float32, values about 0..1."""

CLASSES: tuple[tuple[str, str], ...] = tuple(
    (CLASS_TEXTURES[(shape + turn) % 4], CLASS_SHAPES[shape]) for shape in range(4) for turn in (0, 1)
)
"""(texture, shape) of each class. Every shape is in two classes and so is every texture: neither alone will do."""

SUPERSAMPLING = 3
ASPECTS = ((1.0, 0.75), (0.75, 1.0), (1.0, 1.0))
OBJECT_DIAMETERS = (0.15, 0.5)
"""Range of an object's diameter, as a share of the picture's long side (log-uniform)."""

FOREGROUND_SHORT_SIDE = 128


@dataclass(frozen=True)
class Item:
    """One thing to draw.

    Attributes:
        shape: a key of `SHAPES`.
        texture: a key of `TEXTURES`.
        x: centre, pixels.
        y: centre, pixels.
        radius: half the diameter, pixels.
        label: index into `CLASSES`, or None for clutter.
    """

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    label: int | None = None


@dataclass(frozen=True)
class Scene:
    """A detection picture and what is in it.

    Attributes:
        pixels: `(H, W, 3)` uint8, RGB.
        items: everything drawn, back to front.
        owner: `(H, W)` int16, the index of the item seen at each pixel, -1 for the ground.
        full_areas: pixels of each item's whole silhouette, hidden and outside parts included.
    """

    pixels: NDArray[np.uint8]
    items: list[Item]
    owner: NDArray[np.int16]
    full_areas: list[int]

    def visible_fraction(self, index: int) -> float:
        """Say which share of item `index`'s silhouette can be seen, 0..1."""
        return int((self.owner == index).sum()) / max(self.full_areas[index], 1)


def detection_scene(rng: np.random.Generator, size: int, front_label: int) -> Scene:
    """Render one detection picture.

    Args:
        rng: where all chance comes from.
        size: long side in pixels.
        front_label: class of the frontmost object (the others' classes are drawn), so that a short set has every class.
    """
    aspect = ASPECTS[int(rng.integers(len(ASPECTS)))]
    width, height = round(size * aspect[0]), round(size * aspect[1])
    items = _arrange(rng, size, width, height, front_label)
    pixels, owner, full_areas = _render(rng, width, height, items)
    return Scene(pixels, items, owner, full_areas)


def foreground_picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render one object-centric picture `(H, W, 3)` uint8, RGB, short side 128.

    Any silhouette may wear any texture; a third of the objects also carry a smaller part of another make.
    """
    long_side = round(FOREGROUND_SHORT_SIDE * rng.uniform(1.0, 1.5))
    width, height = FOREGROUND_SHORT_SIDE, long_side
    if rng.random() < 0.5:
        width, height = height, width
    radius = FOREGROUND_SHORT_SIDE * rng.uniform(0.22, 0.5)
    x, y = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    items = [Item(_pick(rng, SHAPES), _pick(rng, TEXTURES), x, y, radius)]
    if rng.random() < 1 / 3:
        turn, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.0, 0.7)
        part = radius * rng.uniform(0.3, 0.55)
        items.append(
            Item(_pick(rng, SHAPES), _pick(rng, TEXTURES), x + away * np.cos(turn), y + away * np.sin(turn), part)
        )
    return _render(rng, width, height, items)[0]


def _pick(rng: np.random.Generator, names: Any) -> str:
    names = tuple(names)
    return str(names[int(rng.integers(len(names)))])


def _arrange(rng: np.random.Generator, size: int, width: int, height: int, front_label: int) -> list[Item]:
    """Choose the items, back to front; about a third are placed so that they touch an earlier one."""
    labels: list[int | None] = [int(label) for label in rng.integers(len(CLASSES), size=int(rng.integers(1, 5)))]
    labels += [None] * int(rng.integers(2, 6))
    labels = [labels[index] for index in rng.permutation(len(labels))] + [front_label]
    items: list[Item] = []
    for label in labels:
        radius = 0.5 * size * float(np.exp(rng.uniform(*np.log(OBJECT_DIAMETERS))))
        x, y = rng.uniform(0.06, 0.94) * width, rng.uniform(0.06, 0.94) * height
        if items and rng.random() < 0.35:
            near = items[int(rng.integers(len(items)))]
            turn, away = rng.uniform(0, 2 * np.pi), (near.radius + radius) * rng.uniform(0.35, 0.8)
            x, y = near.x + away * np.cos(turn), near.y + away * np.sin(turn)
        # A centre near the rim is moved in, so that most of the object is in the picture.
        x = float(np.clip(x, min(radius * 0.5, width / 2), max(width - radius * 0.5, width / 2)))
        y = float(np.clip(y, min(radius * 0.5, height / 2), max(height - radius * 0.5, height / 2)))
        items.append(Item(*_make(rng, label), x, y, radius, label))
    return items


def _make(rng: np.random.Generator, label: int | None) -> tuple[str, str]:
    """Choose shape and texture. Clutter shares one of the two with the classes, or neither, but never both."""
    if label is not None:
        texture, shape = CLASSES[label]
        return shape, texture
    kind = rng.random()
    if kind < 0.4:
        return _pick(rng, OTHER_SHAPES), _pick(rng, CLASS_TEXTURES)
    if kind < 0.65:
        return _pick(rng, CLASS_SHAPES), _pick(rng, OTHER_TEXTURES)
    return _pick(rng, OTHER_SHAPES), _pick(rng, OTHER_TEXTURES)


def _render(
    rng: np.random.Generator, width: int, height: int, items: list[Item]
) -> tuple[NDArray[np.uint8], NDArray[np.int16], list[int]]:
    canvas = _ground(rng, width, height)
    owner = np.full((height, width), -1, np.int16)
    turn = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(turn), np.sin(turn)])
    shadow = rng.uniform(0.1, 0.6)
    full_areas = [_draw(rng, canvas, owner, index, item, light, shadow) for index, item in enumerate(items)]
    return _photograph(rng, canvas), owner, full_areas


def _ground(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Draw one ground, or two that meet along a line (a table before a wall)."""
    canvas = background(rng, height, width)
    if rng.random() < 0.35:
        y, x = np.ogrid[0:height, 0:width]
        slope, level = rng.uniform(-0.3, 0.3), rng.uniform(0.25, 0.75)
        below = y - level * height - slope * (x - width / 2)
        cover = np.clip(below + 0.5, 0, 1).astype(np.float32)[..., None]
        canvas += cover * (background(rng, height, width) - canvas)
    return canvas


def _draw(
    rng: np.random.Generator,
    canvas: Picture,
    owner: NDArray[np.int16],
    index: int,
    item: Item,
    light: NDArray[np.float64],
    shadow: float,
) -> int:
    """Paint `item` and its shadow onto `canvas`, note it in `owner`; return the whole silhouette's pixels."""
    outline = silhouette(item.shape, rng) * item.radius
    half = int(np.ceil(item.radius)) + 1
    left, top = round(item.x) - half, round(item.y) - half
    alpha = _mask(outline + np.array([item.x - left, item.y - top]), 2 * half + 1)

    reach = item.radius * rng.uniform(0.06, 0.25)
    room = int(np.ceil(0.35 * item.radius))
    cast = np.roll(np.pad(alpha, room), tuple(np.round(-light[::-1] * reach).astype(int)), (0, 1))
    cast = np.float32(shadow) * blurred(cast, max(1.5, 0.6 * reach))
    there, here = _overlap(owner, left - room, top - room, len(cast))
    canvas[there] *= (1 - cast[here])[..., None]

    there, here = _overlap(owner, left, top, len(alpha))
    surface = _surface(rng, item, alpha, light)
    canvas[there] += alpha[here][..., None] * (surface[here] - canvas[there])
    seen = alpha >= 0.5
    owner[there][seen[here]] = index
    return int(seen.sum())


def _overlap(owner: NDArray[np.int16], left: int, top: int, side: int) -> tuple[Any, Any]:
    """Clip a square window to the picture: its slices in the picture, and the same pixels' slices in the window."""
    height, width = owner.shape
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


def _mask(outline: NDArray[np.float64], side: int) -> Field:
    """Rasterise an outline in window pixels to anti-aliased coverage `(side, side)`, 0..1."""
    image = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    corners = [tuple(point) for point in (outline * SUPERSAMPLING - 0.5).tolist()]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float32) / np.float32(255)


def _surface(rng: np.random.Generator, item: Item, alpha: Field, light: NDArray[np.float64]) -> Picture:
    """Colour the item's window: texture in two tones, a rounded edge lit from `light`, a little grain."""
    side = len(alpha)
    pixel = 1 / item.radius
    turn = rng.uniform(0, 2 * np.pi)
    along = ((np.arange(side) - side // 2) * pixel).astype(np.float32)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = cos * along[None, :] + sin * along[:, None]
    v = cos * along[:, None] - sin * along[None, :]
    tone = TEXTURES[item.texture](rng, u, v, pixel)[..., None]
    first, second = object_colours(rng)
    height = blurred(alpha, max(1.5, item.radius * rng.uniform(0.15, 0.4)))
    relief = np.float32(rng.uniform(0.15, 0.55) * item.radius * 0.5)
    # The slope falls away from the middle: a slope against the light direction faces the light.
    shade: Field = 1 - relief * (
        np.gradient(height, axis=1) * np.float32(light[0]) + np.gradient(height, axis=0) * np.float32(light[1])
    )
    shade += np.float32(0.25) * (smooth_noise(rng, side, side, max(side / 4, 2.0)) - np.float32(0.5))
    return (first + tone * (second - first)) * np.clip(shade, 0.35, 1.7)[..., None]


def _photograph(rng: np.random.Generator, canvas: Picture) -> NDArray[np.uint8]:
    """Light the scene unevenly, then expose, blur and add noise, as a small camera does."""
    height, width = canvas.shape[:2]
    lamp = smooth_noise(rng, height, width, max(height, width) * rng.uniform(0.4, 1.2))
    depth = rng.uniform(0.2, 0.9)
    exposure = rng.uniform(0.75, 1.25)
    balance = rng.uniform(0.9, 1.1, 3)
    canvas *= np.float32(exposure) * (np.float32(1 - depth / 2) + np.float32(depth) * lamp)[..., None]
    canvas *= balance.astype(np.float32)
    grain = rng.standard_normal((height, width), np.float32)
    canvas += (grain * np.float32(rng.uniform(0.008, 0.045)))[..., None]
    image = Image.fromarray((np.clip(canvas, 0, 1) * np.float32(255)).astype(np.uint8))
    # Blurred after the noise: sensors' noise is smoothed by demosaicing, so its grain is wider than a pixel.
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))))
