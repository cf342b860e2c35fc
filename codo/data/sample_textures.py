"""Surfaces of the sample data: scalar fields between 0 and 1 for objects and backgrounds, and their colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
"""`(H, W)` float32."""

TWO_PI = np.float32(2 * np.pi)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Field:
    """Draw noise whose bumps are about `cell` pixels wide; values about 0 to 1, mean .5."""
    grid = rng.random((int(height / cell) + 4, int(width / cell) + 4), dtype=np.float32)
    left, top = 1 + rng.random(), 1 + rng.random()
    box = (left, top, left + width / cell, top + height / cell)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box))


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 4, gain: float = 0.5
) -> Field:
    """Sum smooth noise, each octave half as wide and `gain` times as strong as the last, stretched to 0..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        total += np.float32(gain**octave) * smooth_noise(rng, height, width, max(cell / 2**octave, 1.5))
    return stretched(total)


def stretched(field: Field) -> Field:
    """Map the field's own range to 0..1."""
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, np.float32(1e-6))


def blurred(field: Field, radius: float) -> Field:
    """Blur a 0..1 field cheaply, by shrinking and enlarging it; `radius` in pixels."""
    height, width = field.shape
    small = (max(2, round(width / radius)), max(2, round(height / radius)))
    image = Image.fromarray(field).resize(small, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def _step(field: Any, edge: float) -> Field:
    """Turn a signed field into 0..1, with a soft edge of width `edge` at 0."""
    return np.clip(np.asarray(field, np.float32) / np.float32(edge) + np.float32(0.5), 0, 1)


# Object textures. u and v say where a pixel lies in object radii (about -1..1), turned with the object; `pixel` is
# a pixel's side in the same unit. Periods are such that the smallest objects still show them.


def _striped(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    period, sway = rng.uniform(0.34, 0.48), rng.uniform(0.0, 0.10)
    bent = u + np.float32(sway) * np.sin(np.float32(rng.uniform(2, 4)) * v + np.float32(rng.uniform(0, 6)))
    return _step(np.sin(TWO_PI * (bent / np.float32(period) + np.float32(rng.random()))), 0.6)


def _lattice(rng: np.random.Generator, u: Field, v: Field, period: float, jitter: float) -> tuple[Any, ...]:
    """Lay cells of side `period` over the object: each pixel's cell, place in it, and a seed point for any cell."""
    x = u / np.float32(period) + np.float32(rng.random())
    y = v / np.float32(period) + np.float32(rng.random())
    row = np.floor(y)
    x = x + np.float32(0.5) * (row % np.float32(2))  # rows stand like bricks
    column = np.floor(x)
    table = rng.uniform(-jitter, jitter, (2, 32, 32)).astype(np.float32)
    return row.astype(np.int32), column.astype(np.int32), x - column, y - row, table


def _spotted(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    row, column, x, y, table = _lattice(rng, u, v, rng.uniform(0.38, 0.5), 0.12)
    shift = table[:, row % 32, column % 32]
    distance = np.hypot(x - np.float32(0.5) - shift[0], y - np.float32(0.5) - shift[1])
    return _step(np.float32(rng.uniform(0.28, 0.34)) - distance, 0.14)


def _chequered(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    period = np.float32(rng.uniform(0.5, 0.68))
    across = np.sin(TWO_PI * (u / period + np.float32(rng.random())))
    return _step(across * np.sin(TWO_PI * (v / period + np.float32(rng.random()))), 0.3)


def _cracked(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    """Patches parted by thin seams, as on a giraffe: Voronoi cells of a jittered lattice."""
    row, column, x, y, table = _lattice(rng, u, v, rng.uniform(0.42, 0.55), 0.36)
    # The neighbouring rows stand half a cell to the right of an odd row, and to the left of an even one.
    lean = (row % 2).astype(np.float32) - np.float32(0.5)
    nearest = np.full(u.shape, 9.0, np.float32)
    second = nearest.copy()
    for down in (-1, 0, 1):
        cell = ((row + down) % 32) * 32
        from_x = x - np.float32(0.5) - lean if down else x - np.float32(0.5)
        from_y = y - np.float32(0.5 + down)
        for right in (-1, 0, 1):
            seed = cell + (column + right) % 32
            dx = from_x - (table[0].take(seed) + np.float32(right))
            dy = from_y - table[1].take(seed)
            distance = dx * dx + dy * dy
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    second, nearest = np.sqrt(second), np.sqrt(nearest)
    return _step(second - nearest - np.float32(rng.uniform(0.13, 0.18)), 0.12)


def _plain(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    return np.full(u.shape, 0.5, np.float32)


def _shaded(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    return _step(u, rng.uniform(1.2, 2.5))


def _grainy(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    height, width = u.shape
    return fractal_noise(rng, height, width, max(3.0, rng.uniform(0.1, 0.6) / pixel), octaves=3, gain=0.7)


def _marbled(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    height, width = u.shape
    noise = fractal_noise(rng, height, width, rng.uniform(0.5, 0.9) / pixel, octaves=3)
    return np.float32(0.5) + np.float32(0.5) * np.sin(np.float32(rng.uniform(3, 5)) * u + 9 * noise)


def _ringed(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    away = np.hypot(u - np.float32(rng.uniform(-0.4, 0.4)), v - np.float32(rng.uniform(-0.4, 0.4)))
    return _step(np.sin(TWO_PI * away / np.float32(rng.uniform(0.34, 0.5))), 0.6)


def _zigzag(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    fold = np.abs((v / np.float32(rng.uniform(0.45, 0.7))) % 1 - np.float32(0.5))
    return _step(np.sin(TWO_PI * (u / np.float32(rng.uniform(0.34, 0.5)) + fold)), 0.6)


def _hatched(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> Field:
    period = np.float32(rng.uniform(0.28, 0.42))
    lines = np.minimum(np.abs((u / period) % 1 - np.float32(0.5)), np.abs((v / period) % 1 - np.float32(0.5)))
    return _step(lines - np.float32(0.12), 0.12)


TEXTURES: dict[str, Callable[[np.random.Generator, Field, Field, float], Field]] = {
    "striped": _striped,
    "spotted": _spotted,
    "chequered": _chequered,
    "cracked": _cracked,
    "plain": _plain,
    "shaded": _shaded,
    "grainy": _grainy,
    "marbled": _marbled,
    "ringed": _ringed,
    "zigzag": _zigzag,
    "hatched": _hatched,
}
"""Every object texture; the first four make classes of the detection set."""

CLASS_TEXTURES = ("striped", "spotted", "chequered", "cracked")
OTHER_TEXTURES = tuple(name for name in TEXTURES if name not in CLASS_TEXTURES)


def _colour(rng: np.random.Generator, light: float) -> NDArray[np.float32]:
    """Draw an RGB colour around the grey `light`, mostly muted, as in photographs."""
    tint = rng.normal(0, 1, 3)
    tint -= tint.mean()
    strength = 0.4 * rng.random() ** 2
    return np.clip(light + strength * tint / max(float(np.abs(tint).max()), 1e-6), 0.02, 0.98).astype(np.float32)


def object_colours(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw two colours `(2, 3)` of clearly different lightness, in either order: no texture owns a colour."""
    dark = rng.uniform(0.06, 0.45)
    pair = np.stack([_colour(rng, dark), _colour(rng, dark + rng.uniform(0.28, 0.5))])
    return pair[::-1] if rng.random() < 0.5 else pair


def _clouds(rng: np.random.Generator, height: int, width: int) -> Field:
    return fractal_noise(rng, height, width, max(height, width) * rng.uniform(0.1, 0.5), 5, rng.uniform(0.45, 0.75))


def _grating(rng: np.random.Generator, height: int, width: int) -> Field:
    """Boards, blinds, corduroy: one or two sets of parallel lines, a little bent."""
    y, x = np.ogrid[0:height, 0:width]
    bend = smooth_noise(rng, height, width, height / 2) * np.float32(rng.uniform(0, 2))
    total = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        turn, period = rng.uniform(0, np.pi), max(height, width) * rng.uniform(0.03, 0.2)
        along = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
        total += _step(np.sin(TWO_PI * along / np.float32(period) + bend), rng.uniform(0.3, 2.0))
    grain = fractal_noise(rng, height, width, 8, 2)
    return stretched(total + np.float32(rng.uniform(0.1, 0.6)) * grain)


def _gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    """A wall or a sky: a slow ramp with faint stains."""
    y, x = np.ogrid[0:height, 0:width]
    turn = rng.uniform(0, 2 * np.pi)
    ramp = stretched((x * np.cos(turn) + y * np.sin(turn)).astype(np.float32))
    return stretched(ramp + np.float32(rng.uniform(0.05, 0.4)) * fractal_noise(rng, height, width, height / 3, 5))


def _blotches(rng: np.random.Generator, height: int, width: int) -> Field:
    """Pebbles, leaves, camouflage: noise cut into a few tones with sharp edges."""
    noise = fractal_noise(rng, height, width, max(height, width) * rng.uniform(0.05, 0.25), 3)
    tones = int(rng.integers(2, 5))
    cut = np.floor(noise * np.float32(tones) * np.float32(0.999)) / np.float32(max(tones - 1, 1))
    return stretched(cut + np.float32(rng.uniform(0.2, 0.8)) * noise)


def _wood(rng: np.random.Generator, height: int, width: int) -> Field:
    y, x = np.ogrid[0:height, 0:width]
    turn = rng.uniform(0, np.pi)
    across = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32) / np.float32(height)
    grown = smooth_noise(rng, height, width, height * rng.uniform(0.25, 0.6))
    rings = np.float32(rng.uniform(5, 14)) * (across + np.float32(rng.uniform(0.2, 0.7)) * grown)
    fibre = smooth_noise(rng, height, width, 2.5)
    saw = np.minimum(rings % 1, np.float32(6) * (1 - rings % 1))  # dark to light slowly, and back within a sixth
    return stretched(saw * np.float32(0.7) + np.float32(0.4) * fibre)


def _marble(rng: np.random.Generator, height: int, width: int) -> Field:
    noise = fractal_noise(rng, height, width, max(height, width) * rng.uniform(0.2, 0.5), 5, 0.6)
    veins = np.abs(np.sin(np.float32(rng.uniform(4, 10)) * noise))
    return veins ** np.float32(rng.uniform(0.3, 1.0))


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], Field]] = {
    "clouds": _clouds,
    "grating": _grating,
    "gradient": _gradient,
    "blotches": _blotches,
    "wood": _wood,
    "marble": _marble,
}


def background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Draw one textured ground `(H, W, 3)`, values 0..1: a random family in three random colours."""
    field = BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))](rng, height, width)
    middle, spread = rng.uniform(0.25, 0.75), rng.uniform(0.05, 0.3)
    ramp = np.stack([_colour(rng, middle + side * spread) for side in (-1, 0, 1)])
    # Most grounds keep near one hue: the three colours are drawn towards their common tint.
    tint = ramp.mean(axis=0) - ramp.mean()
    grey = ramp.mean(axis=1, keepdims=True)
    ramp += np.float32(rng.uniform(0.3, 1.0)) * (grey + tint - ramp)
    if rng.random() < 0.5:
        ramp = ramp[::-1]
    # A table of 256 colours and one look-up costs a third of three interpolations.
    steps = np.linspace(0, 2, 256)
    table = np.column_stack([np.interp(steps, [0, 1, 2], ramp[:, channel]) for channel in range(3)])
    return np.clip(table, 0, 1).astype(np.float32)[(field * np.float32(255)).astype(np.uint8)]
