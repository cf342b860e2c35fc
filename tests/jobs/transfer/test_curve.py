import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codo.jobs.transfer.curve import best_point, curve_area, steps_to_ap
from codo.jobs.transfer.plot import plot_curves

CURVE = [{"step": s, "epoch": s / 10, "AP": ap} for s, ap in ((10, 8.0), (30, 20.0), (40, 18.0))]


def test_the_area_is_the_mean_of_the_interpolated_curve() -> None:
    steps = np.linspace(0, 40, 400_001)
    mean = np.interp(steps, [0, 10, 30, 40], [0, 8, 20, 18]).mean()
    assert curve_area(CURVE) == pytest.approx(mean, abs=1e-4)
    assert curve_area(CURVE[:1]) == 4
    assert curve_area([]) is None
    assert curve_area([*CURVE, {"step": 50, "AP": None}]) is None


def test_the_best_is_the_last_of_equals() -> None:
    assert best_point(CURVE) == {"step": 30, "epoch": 3.0, "AP": 20.0}
    assert best_point([*CURVE, {"step": 50, "epoch": 5.0, "AP": 20.0, "AP50": 1}]) == {
        "step": 50, "epoch": 5.0, "AP": 20.0
    }  # fmt: skip
    assert best_point([{"step": 1, "epoch": 1, "AP": None}]) is None


def test_an_ap_is_reached_at_the_first_evaluation_that_has_it() -> None:
    assert steps_to_ap(CURVE) == {"1": 10, "2": 10, "5": 10, "10": 30, "20": 30}
    assert steps_to_ap([{"step": 3, "AP": None}]) == {}


def test_the_curve_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plot_curves(tmp_path / name, {"none $x$": CURVE, "<codo>": CURVE[:2]}, "title $_{")
    pixels = np.asarray(Image.open(tmp_path / "a" / "curve.png").convert("L"))
    assert pixels.min() < 100 < pixels.max()
    assert math.prod(pixels.shape) > 10_000
    svg = (tmp_path / "a" / "curve.svg").read_text()
    assert "&lt;codo&gt;" in svg or "codo" in svg
    assert "<codo>" not in svg
    assert svg == (tmp_path / "b" / "curve.svg").read_text()
    plot_curves(tmp_path, {"AP": []}, "nothing")


def test_a_title_may_be_in_any_script_or_no_text_at_all(tmp_path: Path) -> None:
    name = b"\xff$\xe6\x97\xa5.pt".decode("utf-8", "surrogateescape")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(tmp_path, {name: CURVE, "AP": CURVE}, name)
    assert (tmp_path / "curve.png").is_file()
    assert r"\udcff$日.pt" in (tmp_path / "curve.svg").read_text()
