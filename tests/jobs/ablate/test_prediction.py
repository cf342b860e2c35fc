"""Rank correlations of probes and AP across rows."""

from __future__ import annotations

import math

import pytest

from codo.jobs.ablate.prediction import FEWEST_ROWS, rank_correlation
from codo.jobs.ablate.report.probes import predictions
from codo.jobs.ablate.report.tables import markdown
from codo.jobs.ablate.results import Cell, Probed, Results, Row

PROBE = "probe/knn"


def make(pairs: list[tuple[float | None, float]], seeds: int = 1, spread: float = 0.0) -> Results:
    """Make a grid of a row a pair: probe and AP, each seed `spread` higher than the one before."""
    cells = [
        Cell(
            row=f"row {i}",
            protocol="p",
            seed=seed,
            status="done",
            metrics={"AP": AP + spread * seed, PROBE: None if probe is None else probe + spread * seed},
        )
        for i, (probe, AP) in enumerate(pairs)
        for seed in range(seeds)
    ]
    return Results(
        title="t",
        question="q",
        design="rows",
        reference="row 0",
        rows=[Row(name=f"row {i}", changes={}) for i in range(len(pairs))],
        protocols=["p"],
        seeds=list(range(seeds)),
        cells=cells,
    )


def test_it_is_spearmans_with_the_interval_of_bonett_and_wright():
    """By hand: ranks 1 2 3 4 5 6 against 2 1 4 3 6 5, squared differences 6: 1 - 6 * 6 / (6 * 35)."""
    found = rank_correlation(make([(1, 20), (2, 10), (3, 40), (4, 30), (5, 60), (6, 50)], seeds=3), "p", PROBE)
    r = 1 - 36 / 210
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 3)
    assert found.rows == 6
    assert found.value == pytest.approx(r)
    assert found.low == pytest.approx(math.tanh(math.atanh(r) - half))
    assert found.high == pytest.approx(math.tanh(math.atanh(r) + half))


def test_a_row_counts_by_its_mean_over_the_seeds_that_have_both():
    results = make([(i, i) for i in range(6)], seeds=2)
    spoilt = results.cells[0]  # row 0, seed 0: its AP would make it the best row, its probe is not there
    spoilt.metrics = {"AP": 99.0, PROBE: None}
    assert rank_correlation(results, "p", PROBE).value == 1.0
    results.cells[1].status = "failed"
    assert rank_correlation(results, "p", PROBE).rows == 5


def test_a_perfect_order_has_no_interval():
    found = rank_correlation(make([(i, -i) for i in range(5)]), "p", PROBE)
    assert (found.value, found.low, found.high) == (-1.0, None, None)
    assert "| knn | −1.00, 5 rows |" in markdown_of([(i, -i) for i in range(5)])


@pytest.mark.parametrize(
    "pairs",
    [
        [(i, i) for i in range(FEWEST_ROWS - 1)],
        [(1, i) for i in range(6)],
        [(i, 1) for i in range(6)],
        [(None, i) for i in range(6)],
    ],
    ids=["too few rows", "one probe", "one AP", "no probes"],
)
def test_where_nothing_can_be_said_nothing_is(pairs):
    assert rank_correlation(make(pairs), "p", PROBE).value is None
    assert predictions(make(pairs)) == {}
    assert "Do the probes" not in markdown_of(pairs)


def test_rows_that_were_probed_on_other_images_are_not_correlated():
    results = make([(i, i) for i in range(6)], seeds=2)
    for cell in results.cells:
        cell.probed = Probed(held_out=True, images=f"of seed {cell.seed}", chance={})
    assert predictions(results) == {"p": {"knn": "+1.00, 6 rows"}}
    results.cells[-1].probed = Probed(held_out=True, images="others", chance={})
    assert predictions(results) == {}
    text = markdown(results, [])
    assert "Do the probes" not in text
    assert "> Mind: Not comparable: in seed 1, rows on either side" in text


def markdown_of(pairs: list[tuple[float | None, float]]) -> str:
    return markdown(make(pairs), [])
