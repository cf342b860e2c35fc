"""A field tuned for each row: which trials there are, what is chosen, what is refused; and a grid run so to its end."""

from __future__ import annotations

import json
import signal

import pytest
import yaml

from codo.errors import CodoError, Interrupted
from codo.jobs.ablate.analysis import analyse
from codo.jobs.ablate.collect import collect
from codo.jobs.ablate.executors import LocalExecutor
from codo.jobs.ablate.jobs import Store
from codo.jobs.ablate.plan import Plan
from codo.jobs.ablate.report import write_report
from codo.jobs.ablate.report.tables import latex, markdown
from codo.jobs.ablate.resolve import Grid, load_grid
from codo.jobs.ablate.results import Cell, Results, Row
from codo.jobs.ablate.run import ablate, plan_grid
from codo.jobs.ablate.scheduler import Scheduler
from codo.jobs.ablate.tuning import trials_of, tuned
from tests.jobs.ablate.conftest import BASE, TRANSFER
from tests.jobs.ablate.test_collect import finish as leave
from tests.jobs.ablate.test_grid import grid, refused

FACTORIAL = """\
axes:
  a: {alignment: true, optim.lr: 0.06}
  b: {loss.image: 0.5}
base_row: plain
include_none: true
"""
TUNE = "tune: {field: optim.lr, factors: [0.33333, 1], seed: 7}\n"


def tuned_grid(tmp_path, tune: str = TUNE) -> Grid:
    body = FACTORIAL.replace("axes", "reference: plain\naxes") + tune
    head = "{preset: codo-small, alignment: false, optim: {epochs: 4, lr: 0.5}}"
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"title: T\ndesign: factorial\nbase: {head}\nmetric: curve_area\n{body}"
        "transfer:\n  tuned: {fraction: 0.5, epochs: 3}\n  frozen: {fraction: 0.5, epochs: 3, freeze: [backbone]}\n"
    )
    return load_grid(file)


def scored(trials: Grid, scores: dict[str, float | None]) -> Results:
    """The trials' results: by name of the row, else 1."""
    (protocol,), (seed,) = trials.file.transfer, trials.file.seeds
    cells = [
        Cell(
            row=row.name,
            protocol=protocol,
            seed=seed,
            status="failed" if scores.get(row.name, 1.0) is None else "done",
            metrics={"curve_area": 50.0, "AP": 50.0} | {trials.file.metric: scores.get(row.name, 1.0)},
        )
        for row in trials.rows
    ]
    rows = [Row(name=row.name, changes=row.changes) for row in trials.rows]
    return Results(
        title="T",
        design="rows",
        reference=trials.reference,
        rows=rows,
        protocols=[protocol],
        seeds=[seed],
        metric="curve_area",
        cells=cells,
    )


def test_every_pretrained_row_has_as_many_trials_of_their_own_seed(tmp_path):
    trials = trials_of(tuned_grid(tmp_path))
    assert [(row.name, row.pretrain.optim.lr, row.pretrain.alignment) for row in trials.rows] == [
        ("plain, optim.lr=0.17", 0.17, False),
        ("plain, optim.lr=0.5", 0.5, False),
        ("a, optim.lr=0.02", 0.02, True),
        ("a, optim.lr=0.06", 0.06, True),
        ("b, optim.lr=0.17", 0.17, False),
        ("b, optim.lr=0.5", 0.5, False),
        ("a + b, optim.lr=0.02", 0.02, True),
        ("a + b, optim.lr=0.06", 0.06, True),
    ]
    assert trials.file.seeds == (7,)
    assert list(trials.file.transfer) == ["tuned"], "the first"
    assert trials.reference == "plain, optim.lr=0.17"
    frozen = trials_of(tuned_grid(tmp_path, TUNE.replace("seed: 7", "seed: 7, protocol: frozen")))
    assert list(frozen.file.transfer) == ["frozen"]
    assert frozen.rows[0].transfers["frozen"].freeze == ("backbone",)


def test_values_are_the_same_for_every_row_and_the_budget_counts(tmp_path):
    body = "axes:\n  image: {loss.image: 0.5}\ntune: {field: views, values: [1, 3], seed: 7}\n"
    found = trials_of(grid(tmp_path, "ladder", body))
    assert [(r.name, r.pretrain.views, r.pretrain.optim.epochs) for r in found.rows] == [
        ("baseline, views=1", 1, 20),
        ("baseline, views=3", 3, 10),
        ("image, views=1", 1, 20),
        ("image, views=3", 3, 10),
    ]


def test_the_best_trial_gives_the_value_and_the_rows_stay_what_they_are(tmp_path):
    whole = tuned_grid(tmp_path, TUNE.replace("[0.33333, 1]", "[0.33333, 1, 3]"))
    scores = {
        "plain, optim.lr=0.5": 3.0,
        "a, optim.lr=0.18": 2.0,
        "a + b, optim.lr=0.02": None,
        "b, optim.lr=1.5": None,
    }
    chosen, tuning, notices = tuned(whole, scored(trials_of(whole), scores))
    assert [(row.name, row.tuned) for row in chosen.rows] == [
        ("random", {}),
        ("plain", {"optim.lr": 0.5}),
        ("a", {"optim.lr": 0.18}),
        ("b", {"optim.lr": 0.17}),
        ("a + b", {"optim.lr": 0.06}),
    ], "of equals the first; a failed trial is none"
    assert [row.pretrain.optim.lr for row in chosen.rows[1:]] == [0.5, 0.18, 0.17, 0.06]
    assert [(r.changes, r.plan.factors) for r in chosen.rows] == [(r.changes, r.plan.factors) for r in whole.rows]
    assert [t.score for t in tuning.trials if t.row == "a + b"] == [None, 1.0, 1.0]
    assert [(t.row, t.value) for t in tuning.trials if t.chosen] == [
        (row.name, *row.tuned.values()) for row in chosen.rows[1:]
    ]
    assert notices == [
        "trials of optim.lr that came to no score, so that there were fewer to choose from, or none: "
        "b (1.5), a + b (0.02)",
        "optim.lr: trials are equal, and the first was taken, for: b, a + b",
        "optim.lr: the best trial is at the end of what was tried for: a (0.18)",
    ]


def test_a_row_without_a_score_keeps_its_own_and_is_named(tmp_path):
    whole = tuned_grid(tmp_path)
    scores = {"b, optim.lr=0.17": None, "b, optim.lr=0.5": None}
    chosen, tuning, notices = tuned(whole, scored(trials_of(whole), scores))
    row = next(row for row in chosen.rows if row.name == "b")
    assert (row.tuned, row.pretrain.optim.lr) == ({}, 0.5)
    assert not any(trial.chosen for trial in tuning.trials if trial.row == "b")
    assert notices[0].endswith("fewer to choose from, or none: b (0.17, 0.5)")


AXES = "axes:\n  image: {loss.image: 0.5}\n"


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ("{field: optim.lr, seed: 7}", ":9: tune: either `values` or `factors`"),
        ("{field: optim.lr, values: [1, 2], factors: [1, 2], seed: 7}", ":9: tune: either `values` or `factors`"),
        ("{field: optim.lr, values: [1], seed: 7}", ":9: tune.values: "),
        ("{field: optim.lr, values: [0.1, 0.2]}", ":9: tune: tune.seed is missing"),
        ("{field: optim.lr, values: [0.1, 0.2], seed: 1}", ":9: tune.seed: 1 is a seed of the rows too"),
        ("{field: optim.lr, values: [0.1, 0.1], seed: 7}", ":9: tune.values.1: row 'baseline' tries 0.1 twice"),
        ("{field: optim.lr, values: [0.1, -1], seed: 7}", ":9: tune.values.1: optim.lr"),
        ("{field: optim.lr, factors: [1, 1.001], seed: 7}", ":9: tune.factors.1: row 'baseline' tries 0.02 twice"),
        ("{field: optim.lr, factors: [1, 0], seed: 7}", ":9: tune.factors.1: "),
        (
            "{field: optim.rate, values: [1, 2], seed: 7}",
            ":9: tune.field: there is no field 'optim.rate'",
        ),
        ("{field: optim, values: [1, 2], seed: 7}", ":9: tune.field: optim is a section; name one of its fields"),
        (
            "{field: model.fpn_channels, values: [64, 128], seed: 7}",
            ":9: tune.field: model.fpn_channels is the detector",
        ),
        ("{field: seed, values: [3, 4], seed: 7}", ":9: tune.field: seed cannot vary"),
        ("{field: data.limit, values: [3, 4], seed: 7}", ":9: tune.field: data cannot vary"),
        (
            "{field: transfer.norm, values: [a, b], seed: 7}",
            ":9: tune.field: there is no field 'transfer.norm'",
        ),
        ("{field: optim.epochs, values: [3, 4], seed: 7}", ":9: tune.values.0: optim.epochs is not free"),
        ("{field: views, factors: [1, 2], seed: 7}", ":9: tune.factors: views of row 'baseline' is 1, no number with"),
        ("{field: loss.image, values: [0.1, 0.2], seed: 7}", ":9: tune.values: row 'image' sets loss.image itself"),
        ("{field: optim.lr, values: [0.1, 0.2], seed: 7, protocol: x}", ":9: tune: no transfer is called 'x'"),
    ],
)
def test_refused_with_the_line(tmp_path, monkeypatch, tune, said):
    monkeypatch.setattr("tests.jobs.ablate.test_grid.load_grid", lambda path: trials_of(load_grid(path)))
    assert refused(tmp_path, "ladder", f"{AXES}tune: {tune}\n").startswith(said)


def test_no_row_that_is_pretrained(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.jobs.ablate.test_grid.load_grid", lambda path: trials_of(load_grid(path)))
    body = "rows:\n  a: {weights: none}\nreference: a\n" + TUNE
    assert refused(tmp_path, "rows", body) == ":10: tune.field: no row is pretrained with optim.lr in force"


def test_values_are_those_in_force_and_a_factor_of_one_leaves_what_is(tmp_path):
    body = "axes:\n  image: {loss.image: 0.5}\ntune: {field: optim.lr, values: [1e-3, 2e-3, 1e-2], seed: 7}\n"
    found = grid(tmp_path, "ladder", body)
    trials = trials_of(found)
    assert [row.name for row in trials.rows[:2]] == ["baseline, optim.lr=0.001", "baseline, optim.lr=0.002"]
    chosen, tuning, notices = tuned(found, scored(trials, {"baseline, optim.lr=0.001": 2.0}))
    assert chosen.rows[0].tuned == {"optim.lr": 0.001}
    assert tuning.trials[0].value == 0.001
    assert notices[-1].endswith("at the end of what was tried for: baseline (0.001), image (0.001)")
    body = "axes:\n  ema: {model.key_momentum: 0.999}\ntune: {field: model.key_momentum, factors: [1, 0.9], seed: 7}\n"
    assert [row.pretrain.model.key_momentum for row in trials_of(grid(tmp_path, "ladder", body)).rows[2:]] == [
        0.999,
        0.9,
    ]


def test_own_parts_are_tuned_too(tmp_path):
    values = "[['own.py:A'], [{path: own.py:B, parameters: {x: 1}}]]"
    body = f"axes:\n  image: {{loss.image: 0.5}}\ntune: {{field: augment, values: {values}, seed: 7}}\n"
    trials = trials_of(grid(tmp_path, "ladder", body))
    b = [{"path": "own.py:B", "parameters": {"x": 1}}]
    assert trials.rows[1].name == f"baseline, augment={json.dumps(b)}"
    _, tuning, _ = tuned(grid(tmp_path, "ladder", body), scored(trials, {trials.rows[1].name: 2.0}))
    assert next(trial.value for trial in tuning.trials if trial.chosen) == b


def test_a_row_in_which_nothing_reads_the_field_is_not_tuned(tmp_path):
    body = "axes:\n  none: {alignment: false}\ntune: {field: jitter.ratio, values: [0.1, 0.2], seed: 7}\n"
    found = grid(tmp_path, "ladder", body)
    trials = trials_of(found)
    assert [row.name for row in trials.rows] == ["baseline, jitter.ratio=0.1", "baseline, jitter.ratio=0.2"]
    chosen, tuning, _ = tuned(found, scored(trials, {}))
    assert [row.tuned for row in chosen.rows] == [{"jitter.ratio": 0.1}, {}]
    assert {trial.row for trial in tuning.trials} == {"baseline"}


def test_the_budget_of_a_tuned_row_is_told_apart_from_its_changes(tmp_path):
    body = "axes:\n  image: {loss.image: 0.5}\ntune: {field: views, values: [1, 3], seed: 7}\n"
    found = grid(tmp_path, "ladder", body)
    chosen, _, _ = tuned(found, scored(trials_of(found), {"baseline, views=3": 2.0}))
    assert [(row.changes, row.tuned) for row in chosen.rows] == [
        ({}, {"views": 3, "optim.epochs": 10}),
        ({"loss.image": 0.5}, {"views": 1}),
    ]
    assert collect(make_plan_of(chosen, tmp_path), tmp_path, {}, "codo").base == "baseline"


def make_plan_of(found: Grid, tmp_path) -> Plan:
    """A plan without jobs."""
    return Plan(found, Store(tmp_path / "jobs"))


def test_rows_that_tuning_makes_the_same_are_named(tmp_path):
    body = "axes:\n  high: {optim.lr: 0.06}\ntune: {field: optim.lr, factors: [1, 3], seed: 7}\n"
    found = grid(tmp_path, "ladder", body)
    assert found.base.optim.lr == 0.02
    _, _, notices = tuned(found, scored(trials_of(found), {"baseline, optim.lr=0.06": 3.0, "high, optim.lr=0.06": 3.0}))
    assert notices == ["the rows are the same once tuned, their difference is 0 by that alone: baseline and high"]


def test_a_wrong_value_is_told_where_it_stands_also_where_the_base_sets_the_field(tmp_path):
    found = grid(
        tmp_path, "ladder", "axes:\n  image: {loss.image: 0.5}\ntune: {field: views, values: [2, 0], seed: 7}\n"
    )
    with pytest.raises(CodoError, match=r"grid.yaml:9: tune.values.1: views = 0"):
        trials_of(found)


def test_every_form_of_the_report_says_what_was_tuned(tmp_path):
    whole = tuned_grid(tmp_path)
    trials = trials_of(whole)
    chosen, tuning, _ = tuned(whole, scored(trials, {"a, optim.lr=0.06": 2.5}))
    rows = [Row(name=r.name, changes=r.changes, factors=r.plan.factors, tuned=r.tuned) for r in chosen.rows]
    results = scored(trials, {}).model_copy(
        update={"rows": rows, "reference": "plain", "cells": [], "protocols": ["tuned"], "tuning": tuning}
    )
    said = "optim.lr was tuned for each row by trials of seed 7, judged by curve_area of tuned"
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    assert said in page
    assert '<code class="chip">optim.lr: 0.06</code> tuned' in page
    analyses = [analyse(results, "tuned")]
    assert "a: 0.02 (1.00), 0.06 (2.50) ←" in markdown(results, analyses)
    assert r"a: 0.02 (1.00), 0.06 (2.50) $\leftarrow$" in latex(results, analyses)
    assert "tuned" not in markdown(results.model_copy(update={"tuning": None}), analyses).split("## ")[0]
    assert "judged by curve" in markdown(results.model_copy(update={"metric": "AP50"}), analyses)


@pytest.fixture
def tuning_grid(write_grid, monkeypatch, tmp_path):
    from tests.jobs.ablate.forks import ForkedPopen

    monkeypatch.setattr("codo.jobs.ablate.work.Popen", ForkedPopen)
    for module in ("work", "scheduler", "executors.local"):
        monkeypatch.setattr(f"codo.jobs.ablate.{module}.POLL_SECONDS", 0.02)
    monkeypatch.setattr("codo.jobs.ablate.run.draw_samples", lambda plan, folder: {})
    monkeypatch.chdir(tmp_path)
    rows = {"a": {}, "random": {"weights": "none"}}
    tune = {"field": "optim.lr", "factors": [0.1, 1.0], "seed": 5}
    return write_grid(design="rows", axes=None, rows=rows, reference="random", seeds=[0], tune=tune)


def test_a_grid_tunes_runs_and_reports_and_nothing_runs_twice(tuning_grid, tmp_path):
    out = tmp_path / "out"
    before = plan_grid(tuning_grid, out)
    assert [len(plan.remaining()) for plan in before] == [4, 3]
    assert before[1].notices == ["optim.lr of each row will be what its trials choose, not as shown"]
    done = ablate(tuning_grid, out)
    assert done.path == out / "grid"
    trials = Results.read(out / "grid" / "tuning" / "results.json")
    own = BASE["optim"].get("lr", load_grid(tuning_grid).base.optim.lr)
    scores = {
        value: trials.cell(f"a, optim.lr={value}", "tuned", 5).metrics["AP"]
        for value in (float(f"{own * 0.1:.2g}"), float(f"{own:.2g}"))
    }
    best = max(scores, key=scores.__getitem__)
    assert [(t.value, t.score, t.chosen) for t in done.results.tuning.trials] == [
        (value, score, value == best) for value, score in scores.items()
    ]
    assert [row.tuned for row in done.results.rows] == [{"optim.lr": best}, {}]
    run = out / "grid" / done.results.cell("a", "tuned", 0).folders["pretrain"]
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == best
    assert (out / "grid" / "tuning" / "report.html").is_file()
    assert Results.read(out / "grid" / "results.json") == done.results
    jobs = sorted(path.name for path in (out / "jobs").iterdir())
    assert len(jobs) == 7
    plans = plan_grid(tuning_grid, out)
    assert [len(plan.remaining()) for plan in plans] == [0, 0]
    assert plans[1].grid.rows[0].tuned == {"optim.lr": best}
    times = {file: file.stat().st_mtime_ns for file in out.rglob("summary.json")}
    ablate(tuning_grid, out)
    assert times == {file: file.stat().st_mtime_ns for file in out.rglob("summary.json")}

    other = next(t for t in done.results.tuning.trials if not t.chosen)
    cell = trials.cell(f"a, optim.lr={other.value}", "tuned", 5)
    summary = out / "grid" / "tuning" / cell.folders["transfer"] / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"metrics": {"AP": 50.0}}))
    again = ablate(tuning_grid, out)
    assert [row.tuned for row in again.results.rows] == [{"optim.lr": other.value}, {}]
    assert len(list((out / "jobs").iterdir())) == 9, "the other value's pretraining and transfer"


def finish(plan: Plan, but: str = "") -> None:
    """Leave what jobs leave, but for those of the trials that are named so."""
    rows = {key.row: cell for key, cell in plan.cells.items()}
    left = [name for row, cell in rows.items() if but and row.endswith(but) for name in cell.jobs()]
    for name, job in plan.jobs.items():
        if name not in left:
            plan.store.folder(name).write(job)
            leave(plan.store.folder(name))


def test_a_failed_trial_decides_nothing_and_ends_nothing(tuning_grid, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plan = plan_grid(tuning_grid, out)[0]
    finish(plan, "0.003")
    failed = plan.store.folder(next(name for name in plan.jobs if not plan.store.folder(name).done))
    failed.write(plan.jobs[failed.name])
    (failed.path / "failed.json").write_text(json.dumps({"message": "the loss is not finite", "code": 1, "time": ""}))
    plans = plan_grid(tuning_grid, out)
    assert plans[1].grid.rows[0].tuned == {"optim.lr": 0.03}, "it is decided"
    finish(plans[1])
    monkeypatch.setattr(LocalExecutor, "submit", lambda *given: pytest.fail("there is nothing to run"))
    done = ablate(tuning_grid, out, fail_fast=True)
    assert done.path == out / "grid"
    assert done.failures == {failed.name: "the loss is not finite"}
    assert done.results.notices == [
        "trials of optim.lr that came to no score, so that there were fewer to choose from, or none: a (0.003)"
    ]


def test_stopped_or_broken_off_in_the_trials_the_grid_says_so(tuning_grid, tmp_path, monkeypatch):
    out, made = tmp_path / "out", []

    def run(scheduler: Scheduler, on_done: object) -> None:
        made.append(scheduler.plan.grid.file.title)
        raise Interrupted(signal.SIGTERM, "stopped")

    def break_off(scheduler: Scheduler, on_done: object) -> None:
        scheduler.broke_off = True

    monkeypatch.setattr(Scheduler, "run", run)
    with pytest.raises(Interrupted):
        ablate(tuning_grid, out)
    told = "the trials, which come before the rows, are not done: tuning/ has what there is"
    assert Results.read(out / "grid" / "results.json").notices == [told]
    assert Results.read(out / "grid" / "tuning" / "results.json").title == "Tiny: tuning"
    assert told in (out / "grid" / "report.html").read_text()
    monkeypatch.setattr(Scheduler, "run", break_off)
    found = ablate(tuning_grid, out, fail_fast=True)
    assert made == ["Tiny: tuning"]
    assert [cell.status for cell in found.results.cells] == ["missing", "missing"]


def test_stopped_in_the_trials_a_report_of_before_stays_and_failures_are_told(tuning_grid, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plan = plan_grid(tuning_grid, out)[1]
    failed = plan.store.folder(plan.cells["random", "tuned", 0].transfers[0])
    failed.write(plan.jobs[failed.name])
    (failed.path / "failed.json").write_text(json.dumps({"message": "out of memory", "code": 1, "time": ""}))

    def break_off(scheduler: Scheduler, on_done: object) -> None:
        scheduler.broke_off = True

    monkeypatch.setattr(Scheduler, "run", break_off)
    found = ablate(tuning_grid, out, fail_fast=True).results
    assert [(cell.status, cell.failure) for cell in found.cells] == [("missing", None), ("failed", "out of memory")]
    finished = found.model_copy(update={"question": "of a finished grid"})
    finished.write(out / "grid" / "results.json")
    assert ablate(tuning_grid, out, fail_fast=True).results == finished
    monkeypatch.setattr(Scheduler, "run", lambda *given: (_ for _ in ()).throw(Interrupted(signal.SIGTERM, "stop")))
    with pytest.raises(Interrupted):
        ablate(tuning_grid, out)
    assert Results.read(out / "grid" / "results.json") == finished


def test_more_threads_than_the_cores_bear_are_refused_before_the_trials(write_grid, tmp_path, monkeypatch):
    monkeypatch.setattr("codo.jobs.ablate.executors.local.available_cores", lambda: 2)
    monkeypatch.setattr("codo.jobs.ablate.executors.local._gpus", list)
    monkeypatch.setattr(Scheduler, "run", lambda *given: pytest.fail("trials are run"))
    two = {"tuned": TRANSFER, "wide": TRANSFER | {"run": TRANSFER["run"] | {"threads": 2}}}
    tune = {"field": "optim.lr", "factors": [0.1, 1.0], "seed": 5}
    with pytest.raises(CodoError, match="--jobs 2: of 2 threads each exceed"):
        ablate(write_grid(tune=tune, transfer=two), tmp_path / "out", jobs=2)


def test_one_executor_is_there_at_a_time(tuning_grid, tmp_path, monkeypatch):
    """Ray refuses a second one before the first has stopped."""
    finish(plan_grid(tuning_grid, tmp_path / "out")[0])
    there = []
    before, stop = LocalExecutor.__init__, LocalExecutor.stop

    def init(self: LocalExecutor, *given: object) -> None:
        assert not there
        there.append(self)
        before(self, *given)

    monkeypatch.setattr(LocalExecutor, "__init__", init)
    monkeypatch.setattr(LocalExecutor, "stop", lambda self: (there.remove(self), stop(self)))
    finish(plan_grid(tuning_grid, tmp_path / "out")[1])
    done = ablate(tuning_grid, tmp_path / "out")
    assert not there
    assert [cell.status for cell in done.results.cells] == ["done", "done"]
    assert done.results.notices == ["optim.lr: trials are equal, and the first was taken, for: a"]
