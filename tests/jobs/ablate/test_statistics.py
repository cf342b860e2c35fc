"""Statistics of a grid against hand computations, scipy on the raw numbers, and published examples."""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats

from codo.jobs.ablate.analysis import analyse, epochs_to
from codo.jobs.ablate.results import Cell, Point, Results, Row
from codo.jobs.ablate.statistics import (
    FEWEST,
    compare,
    holm,
    judge,
    margin_of,
    of_differences,
    seeds_for,
    smallest_wilcoxon,
    spread,
)
from tests.jobs.ablate.synthetic import make_factorial, make_results

AP = {
    "full": [20.1, 22.4, 19.8, 21.0, 23.2],
    "less": [18.0, 20.9, 17.2, 19.1, 21.5],
    "same": [20.2, 22.3, 19.9, 20.9, 23.3],
    "wild": [24.9, 18.0, 25.0, 17.1, 26.0],
}


def grid(values: dict[str, list[float | None]], **more) -> Results:
    """Results of one protocol; None is a seed that failed."""
    cells = [
        Cell(row=row, protocol="p", seed=seed, status="done" if v is not None else "failed", metrics={"AP": v})
        for row, found in values.items()
        for seed, v in enumerate(found)
    ]
    rows = [Row(name=name, changes={}) for name in values]
    seeds = list(range(max(map(len, values.values()))))
    options = {"title": "t", "design": "rows", "reference": rows[0].name} | more
    return Results(rows=rows, protocols=["p"], seeds=seeds, cells=cells, **options)


def test_a_row_by_hand():
    """20, 22, 24: std 2, and 4.303 standard errors of 2 / sqrt(3) to either side."""
    s = spread(grid({"a": [20.0, 22.0, 24.0]}), "a", "p")
    assert (s.n, s.mean, s.std) == (3, 22.0, pytest.approx(2.0))
    assert (s.low, s.high) == (pytest.approx(22 - 4.302653 * 2 / 3**0.5), pytest.approx(22 + 4.302653 * 2 / 3**0.5))
    assert s.count == "3"


@pytest.mark.parametrize("row", ["less", "same", "wild"])
def test_a_comparison_is_scipys_paired_t_test(row):
    found = analyse(grid(AP), "p").comparisons[row]
    theirs = stats.ttest_rel(AP[row], AP["full"])
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    difference = np.subtract(AP[row], AP["full"])
    assert found.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(difference).pvalue)


def test_the_verdicts():
    found = analyse(grid(AP), "p").comparisons
    assert {name: c.verdict for name, c in found.items()} == {
        "less": "hurts",
        "same": "no difference shown",
        "wild": "not enough seeds to tell",
    }
    assert analyse(grid(AP, reference="less"), "p").comparisons["full"].verdict == "helps"
    assert found["wild"].seeds_needed > 5


def test_the_margin_shrinks_with_the_reference():
    """At 0.3 AP an interval of +-0.1 has not excluded what matters; at 30 AP it has."""
    for scale, verdict in ((30.0, "no difference shown"), (0.3, "not enough seeds to tell")):
        values = {"full": [scale, scale + 0.1, scale + 0.2], "less": [scale, scale + 0.13, scale + 0.18]}
        found = analyse(grid(values), "p").comparisons["less"]
        assert found.verdict == verdict
        assert found.margin == pytest.approx(min(1.0, 0.05 * (scale + 0.1)))
    assert margin_of(spread(grid({"a": [None]}), "a", "p")) == 1.0
    assert margin_of(spread(grid({"a": [0.0, 0.0]}), "a", "p")) == 0.0


def test_pairing_is_what_shows_a_difference_smaller_than_the_seeds_spread():
    found = analyse(grid(AP), "p").comparisons["less"]
    assert stats.ttest_ind(AP["less"], AP["full"]).pvalue > 0.05 > found.p_holm


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_are_never_a_difference_however_large_it_is(n):
    found = analyse(grid({"full": [20.0, 20.1][:n], "less": [1.0, 1.2][:n]}), "p").comparisons["less"]
    assert n < FEWEST
    assert (found.n, found.verdict) == (n, "not enough seeds to tell")
    assert (found.p is None) == (n == 1)
    assert found.mean == pytest.approx(-19.0 if n == 1 else -18.95)


def test_a_row_with_missing_seeds_is_compared_on_the_seeds_that_both_have():
    values = {"full": [20.0, 21.0, None, 23.0, 24.5], "less": [19.0, None, None, 21.5, 23.0]}
    result = grid(values)
    a = analyse(result, "p")
    found = a.comparisons["less"]
    assert a.spreads["less"].count == "3 of 5: seed 1 failed, seed 2 failed"
    assert found.differences == {0: -1.0, 3: -1.5, 4: -1.5}
    assert found.mean == pytest.approx(-4 / 3)
    assert found.count == "3 of 5: seed 1 failed, seed 2 failed, and failed for full"


def test_missing_failed_and_undefined_are_told_apart():
    result = grid({"full": [20.0, 21.0, 22.0, 23.0], "less": [19.0, None, math.nan, 1.0]})
    result.cells[-1].metrics["AP"] = None
    result.cells = [c for c in result.cells if (c.row, c.seed) != ("less", 0)]
    assert spread(result, "less", "p").count == (
        "0 of 4: seed 0 missing, seed 1 failed, seed 2 undefined, seed 3 undefined"
    )


def test_a_metric_of_a_failed_cell_does_not_count():
    result = grid({"full": [20.0]})
    result.cells[0].status = "failed"
    assert spread(result, "full", "p").n == 0


def test_all_failed():
    result = grid({"full": [None] * 3, "less": [None] * 3, "more": [1.0, 2.0, 3.0]})
    a = analyse(result, "p")
    for name in ("less", "more"):
        found = a.comparisons[name]
        assert (found.n, found.mean, found.p, found.p_holm) == (0, None, None, None)
        assert found.verdict == "not enough seeds to tell"
    assert a.reach is None


def test_differences_that_do_not_vary():
    """A t-test would say p = 0, of three seeds; no spread is no evidence about other seeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analyse(grid({"full": [20.1, 21.3, 22.7], "less": [18.1, 19.3, 20.7]}), "p").comparisons["less"]
        same = analyse(grid({"full": [20.1, 21.3, 22.7], "less": [20.1, 21.3, 22.7]}), "p").comparisons["less"]
    assert (found.p, found.low, found.verdict) == (None, None, "not enough seeds to tell")
    assert found.mean == pytest.approx(-2.0)
    assert found.wilcoxon == pytest.approx(smallest_wilcoxon(3))
    assert (same.mean, same.p, same.low, same.verdict) == (0.0, 1.0, 0.0, "no difference shown")


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8])
def test_the_smallest_p_of_wilcoxon(n):
    differences = {seed: 1.0 + 0.1 * seed for seed in range(n)}
    assert of_differences("a", "b", differences, {}).wilcoxon == pytest.approx(smallest_wilcoxon(n))


def test_holm_against_published_examples():
    # What statsmodels 0.15's multipletests(method="holm") gives; on 2,000 random families, too, it gave the same.
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.012, 0.0004, 0.2, 0.031, 0.031, 0.9]) == pytest.approx([0.06, 0.0024, 0.4, 0.124, 0.124, 0.9])
    # Holm's procedure as Wikipedia works it: p = .01, .04, .03, .005; the first and the last are rejected at .05.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_the_comparisons_that_could_not_be_tested():
    tested = of_differences("a", "r", {0: -1.0, 1: -1.2, 2: -1.1}, {})
    untested = of_differences("b", "r", {0: 1.0}, {1: "failed", 2: "failed"})
    alone, both = judge([tested])[0], judge([tested, untested])
    assert both[0].p_holm == pytest.approx(2 * alone.p)
    assert both[1].p_holm is None


def test_correction_can_take_a_verdict_away():
    rng = np.random.default_rng(0)
    p = of_differences("a", "r", {0: 0.9, 1: 1.8, 2: 1.3}, {})
    assert p.p < 0.05
    others = [of_differences(f"{i}", "r", dict(enumerate(rng.normal(0, 1, 3))), {}) for i in range(5)]
    assert judge([p])[0].verdict == "helps"
    assert judge([p, *others])[0].verdict == "not enough seeds to tell"


def test_three_alike_seeds_can_be_told_by_the_t_test_alone():
    found = compare("a", *(spread(grid(v), "a", "p") for v in ({"a": [5.0, 6.1, 7.0]}, {"a": [2.0, 3.0, 4.1]})), "r")
    assert judge([found])[0].verdict == "helps"
    assert found.wilcoxon == pytest.approx(0.25)


def test_seeds_needed_are_the_fewest_that_make_the_interval_narrow():
    for std in (0.5, 1.0, 2.5):
        n = seeds_for(std)
        assert stats.t.ppf(0.975, n - 1) * std / n**0.5 <= 1.0
        assert n == 3 or stats.t.ppf(0.975, n - 2) * std / (n - 1) ** 0.5 > 1.0
    assert seeds_for(1e6) == 1000


def test_a_ladder_is_also_compared_step_by_step():
    values = {"base": [10.0, 11.0, 12.0], "+a": [12.0, 13.1, 14.0], "+a+b": [12.5, 13.4, 14.6]}
    a = analyse(grid(values, design="ladder"), "p")
    assert [(c.name, c.against) for c in a.steps] == [("+a", "base"), ("+a+b", "+a")]
    assert a.steps[1].differences == pytest.approx({0: 0.5, 1: 0.3, 2: 0.6})
    assert a.comparisons["+a+b"].differences == pytest.approx({0: 2.5, 1: 2.4, 2: 2.6})
    assert analyse(grid(values), "p").steps == []


def test_effects_of_two_switches_by_hand():
    values = {
        (False, False): [10.0, 11.0, 12.0],
        (True, False): [12.0, 13.5, 13.5],
        (False, True): [11.0, 11.0, 12.5],
        (True, True): [16.0, 17.0, 17.5],
    }
    effects = {c.name: c for c in analyse(make_factorial(values, ["A", "B"]), "p").effects}
    assert effects["A"].differences == pytest.approx({0: 3.5, 1: 4.25, 2: 3.25})
    assert effects["B"].differences == pytest.approx({0: 2.5, 1: 1.75, 2: 2.25})
    assert effects["A × B"].differences == pytest.approx({0: 3.0, 1: 3.5, 2: 3.5})
    assert effects["A × B"].p == pytest.approx(stats.ttest_1samp([3.0, 3.5, 3.5], 0).pvalue)
    assert effects["A"].p_holm == pytest.approx(holm([effects[n].p for n in ("A", "B", "A × B")])[0])


def test_an_interaction_does_not_help_or_hurt():
    """Each alone is worth 5, both 6: less than the sum, and yet the best."""
    luck = [0.0, 1.0, 2.0, 3.0, 4.0]
    worth = {(False, False): 0.0, (True, False): 5.0, (False, True): 5.0, (True, True): 6.0}
    wobble = iter(np.random.default_rng(0).normal(0, 0.1, 20))
    for sign, word in ((1, "less together"), (-1, "more together")):
        values = {key: [10 + sign * v + x + next(wobble) for x in luck] for key, v in worth.items()}
        effects = {c.name: c.verdict for c in analyse(make_factorial(values, ["A", "B"]), "p").effects}
        assert effects == {"A": ["helps", "hurts"][sign < 0], "B": ["helps", "hurts"][sign < 0], "A × B": word}
        wobble = iter(np.random.default_rng(0).normal(0, 0.1, 20))


def test_effects_of_three_switches_are_the_coefficients_of_a_regression():
    rng = np.random.default_rng(1)
    values = {c: list(rng.normal(20, 2, 4)) for c in product((False, True), repeat=3)}
    effects = {c.name: c for c in analyse(make_factorial(values, ["A", "B", "C"]), "p").effects}
    assert list(effects) == ["A", "B", "C", "A × B", "A × C", "B × C"]
    x = np.array(list(values)) * 1.0 - 0.5
    design = np.column_stack([np.ones(8), x, x[:, 0] * x[:, 1], x[:, 0] * x[:, 2], x[:, 1] * x[:, 2], x.prod(1)])
    for seed in range(4):
        fitted = np.linalg.solve(design, [found[seed] for found in values.values()])[1:7]
        assert [c.differences[seed] for c in effects.values()] == pytest.approx(list(fitted))


def test_effects_leave_a_seed_out_where_a_combination_is_missing():
    values = {c: [1.0, 2.0, 3.0] for c in product((False, True), repeat=2)}
    result = make_factorial(values, ["A", "B"])
    next(c for c in result.cells if c.seed == 1).status = "failed"
    found = analyse(result, "p").effects[0]
    assert (found.n, found.absent) == (2, {1: "failed for - -"})
    result.rows = result.rows[1:]  # no longer all combinations: no effects
    result.reference = result.rows[0].name
    assert analyse(result, "p").effects == []


def test_time_to_an_AP():
    curve = [Point(step=i, epoch=i, AP=ap) for i, ap in enumerate([None, 1.0, 3.0, 2.0, 5.0])]
    assert epochs_to(curve, 2.0) == 1.5
    assert epochs_to(curve, 4.0) == pytest.approx(3 + 2 / 3)
    assert epochs_to(curve, 0.5) == 1.0
    assert epochs_to(curve, 5.1) is None
    assert epochs_to([], 1.0) is None

    result = make_results()
    reach = analyse(result, result.protocols[0]).reach
    final = [result.cell("codo", result.protocols[0], seed).curve[-1].AP for seed in range(5)]
    assert reach.target == pytest.approx(0.9 * np.mean(final))
    assert reach.median("codo") < reach.median("no hierarchy")
    assert reach.median("not pretrained") is None  # most seeds never get there
    assert set(reach.epochs["no hierarchy"]) == {0, 2, 3, 4}


def test_no_difference_needs_both_ends_of_the_interval_within_the_margin():
    def verdict(*values):
        return judge([of_differences("a", "r", dict(enumerate(values)), {})], 1.0)[0]

    below = verdict(-2.0, -1.5, -0.8, 0.0, 0.3)  # about -2.0 to 0.4
    assert below.low < -1 < below.high < 1
    assert below.verdict == "not enough seeds to tell"
    above = verdict(2.0, 1.5, 0.8, 0.0, -0.3)
    assert above.verdict == "not enough seeds to tell"
    wide = verdict(-0.7, 0.6, -0.5, 0.4, 0.1)  # wider than the margin, but inside it on either side
    assert wide.high - wide.low > 1
    assert max(-wide.low, wide.high) < 1
    assert wide.verdict == "no difference shown"


def test_the_margin_is_that_of_the_reference_everywhere():
    small = {name: [v / 10 for v in values] for name, values in AP.items()}
    a = analyse(grid(small, design="ladder"), "p")
    assert a.margin == pytest.approx(0.05 * np.mean(small["full"]))
    assert {c.margin for c in (*a.comparisons.values(), *a.steps)} == {a.margin}
    values = {(x, y): [1.0 + x, 1.5 + y, 1.2] for x in (False, True) for y in (False, True)}
    b = analyse(make_factorial(values, ["A", "B"]), "p")
    assert b.margin < 1
    assert {c.margin for c in b.effects} == {b.margin}
    wild = a.comparisons["wild"]
    assert wild.seeds_needed == seeds_for(wild.std, a.margin) > seeds_for(wild.std)
    assert margin_of(spread(grid({"a": [-1.0, -2.0]}), "a", "p")) == 0.0


def test_the_target_is_a_share_of_the_last_AP_and_an_AP_that_is_met_counts():
    result = grid({"full": [3.0, 3.0], "less": [1.0, 2.0]})
    for cell in result.cells[:2]:
        cell.curve = [Point(step=i, epoch=i, AP=ap) for i, ap in enumerate([1.0, 9.0, 3.0])]
    assert analyse(result, "p").reach.target == pytest.approx(0.9 * 3.0)
    assert epochs_to(result.cells[0].curve, 9.0) == 1.0
