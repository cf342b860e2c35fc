"""What is read from finished jobs; made-up ones, as files that a job leaves."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from codo.errors import CodoError
from codo.jobs.ablate.analysis import analyse
from codo.jobs.ablate.collect import collect, draw_samples
from codo.jobs.ablate.display import Display
from codo.jobs.ablate.jobs import JobFolder, Store
from codo.jobs.ablate.places import without_places
from codo.jobs.ablate.plan import CellKey, Plan, make_plan
from codo.jobs.ablate.report import terminal_table, write_report
from codo.jobs.ablate.resolve import load_grid
from codo.jobs.ablate.results import Results

ENVIRONMENT = {"fingerprint": "f", "hardware": "cpu, bf16, 1 threads, 0 loader workers"}
DONE: dict[str, dict[str, Any]] = {
    "pretrain": {"fingerprint": "f", "seconds": 1.0},
    "transfer": {
        "fingerprint": "f",
        "train_seconds": 1.0,
        "curve": [{"step": 1, "epoch": 1.0, "AP": 2.0}, {"step": 2, "epoch": 2.0, "AP": 3.0}],
        "metrics": {"AP": 3.0, "AP50": 4.0},
        "curve_area": 2.0,
        "errors": {"missed": 1.0},
        "frozen_but_fresh": [],
    },
    "probe": {
        "probes": {"hard_top1": 0.5, "box_head/hard_top1": 0.6},
        "chance": {"hard_top1": 0.1, "box_head/hard_top1": 0.1},
        "settings": {"images": "aaaa"},
        "held_out": True,
    },
}


def finish(job: JobFolder, **changes: Any) -> None:
    """Leave what a job leaves."""
    job.run.mkdir(parents=True, exist_ok=True)
    job.result.write_text(json.dumps(DONE[job.kind] | changes))
    if job.kind != "probe":
        (job.run / "environment.json").write_text(json.dumps(ENVIRONMENT))


@pytest.fixture
def plan(write_grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A grid of two rows and two seeds with probes, all of whose jobs are finished."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = make_plan(load_grid(write_grid(probes=True)), Store(tmp_path / "here" / "out" / "jobs"))
    for name, job in made.jobs.items():
        folder = made.store.folder(name)
        folder.write(job)
        finish(folder)
    return made


def gather(plan: Plan, failures: dict[str, str] | None = None) -> Results:
    return collect(plan, plan.store.path.parent / "grid", failures or {}, "codo ablate grid.yaml")


def page_of(results: Results, folder: Path) -> str:
    write_report(folder, results)
    return (folder / "report.html").read_text(encoding="utf-8")


def told(results: Results) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(terminal_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def jobs_of(plan: Plan, kind: str) -> list[JobFolder]:
    return [plan.store.folder(name) for name, job in plan.jobs.items() if job.kind == kind]


def test_the_hardware_is_that_of_the_jobs_and_more_than_one_is_a_warning(plan, tmp_path):
    results = gather(plan)
    assert results.environment["hardware"] == {kind: [ENVIRONMENT["hardware"]] for kind in ("pretrain", "transfer")}
    page = page_of(results, tmp_path / "grid")
    assert "<span>cpu, bf16, 1 threads, 0 loader workers</span>" in page
    assert "fp32" not in json.dumps(results.environment)
    assert "same hardware" not in page + told(results)
    other = {**ENVIRONMENT, "hardware": "NVIDIA H100, fp16, 4 threads, 0 loader workers", "earlier": [ENVIRONMENT]}
    (jobs_of(plan, "transfer")[0].run / "environment.json").write_text(json.dumps(other))
    results = gather(plan)
    assert results.environment["hardware"]["transfer"] == [other["hardware"], ENVIRONMENT["hardware"]]
    for text in (page_of(results, tmp_path / "grid"), told(results)):
        assert "the transfer jobs did not run on the same hardware" in text
        assert "the pretrain jobs" not in text
    said = f"the transfer jobs did not run on the same hardware, or not in the same precision: {other['hardware']}; "
    table = (tmp_path / "grid" / "table.md").read_text(encoding="utf-8")
    assert f"> Mind: {said}{ENVIRONMENT['hardware']}\n\n## tuned\n" in table
    assert f" Mind: {said}{ENVIRONMENT['hardware']}.}}\n" in (tmp_path / "grid" / "table.tex").read_text(
        encoding="utf-8"
    )


def test_a_probe_that_failed_is_told(plan, tmp_path):
    probe = jobs_of(plan, "probe")[0]
    probe.result.unlink()
    results = gather(plan, {probe.name: "RuntimeError: <no> memory"})
    assert [(c.status, c.failures) for c in results.cells][:2] == [
        ("done", {"probe": "RuntimeError: <no> memory"}),
        ("done", {}),
    ]
    page = page_of(results, tmp_path / "grid")
    assert "1 of the probes failed" in page
    assert "RuntimeError: &lt;no&gt; memory" in page[page.index('<section id="failures"') :]
    transfer = jobs_of(plan, "transfer")[0]
    transfer.result.unlink()
    assert gather(plan, {transfer.name: "broken"}).cells[0].failure == "broken"


@pytest.mark.parametrize(("kind", "key"), [("pretrain", "fingerprint"), ("probe", "probes"), ("transfer", "metrics")])
def test_a_damaged_result_is_told_in_a_line(plan, kind, key):
    result = jobs_of(plan, kind)[0].result
    for content, said in (("{}", f'it lacks "{key}"'), ('{"a', "Unterminated string.*")):
        result.write_text(content)
        with pytest.raises(CodoError, match=rf"^cannot read {result}: {said}$"):
            gather(plan)


def test_what_the_probes_looked_at_is_told_where_it_matters(plan, tmp_path):
    results = gather(plan)
    assert all(c.probed.held_out and c.probed.images == "aaaa" for c in results.cells)
    assert results.cells[0].probed.chance["probe/hard_top1"] == 0.1
    page = page_of(results, tmp_path / "grid")
    assert "Not held out" not in page
    assert "Not comparable" not in page
    assert "> Mind: " not in (tmp_path / "grid" / "table.md").read_text(encoding="utf-8")
    first = plan.cells[next(key for key in plan.cells if (key.row, key.seed) == ("no hierarchy", 1))].probe
    finish(plan.store.folder(first), held_out=False, settings={"images": "bbbb"})
    page = page_of(gather(plan), tmp_path / "grid")
    assert "Not held out: the pretraining may have seen the images that it is probed on: no hierarchy (seed 1)." in page
    assert f"seed 1, rows on either side of | were probed on other images: {results.reference} | no hierarchy" in page
    table = (tmp_path / "grid" / "table.md").read_text(encoding="utf-8")
    assert "> Mind: Not held out: the pretraining may have seen the images" in table
    assert "> Mind: Not comparable: in seed 1, rows on either side of \\| were probed on other images: " in table


def test_nothing_that_is_written_names_a_place_of_this_machine(plan, tmp_path):
    mark = str(tmp_path)
    failed = jobs_of(plan, "transfer")[0]
    failed.result.unlink()
    row = plan.grid.rows[1]
    row.changes["jitter.custom"] = f"{mark}/own parts/jitter.py:Jitter"
    folder = tmp_path / "grid"
    where = plan.store.path.parent / "grid"
    messages = {failed.name: f"OSError: {mark}/data/x.png: see {failed.path}/log.txt, or {mark}/here"}
    results = collect(plan, where, messages, f"codo ablate '{mark}/my grid.yaml' --out {mark}/here/out")
    results.write(folder / "results.json")
    write_report(folder, results)
    for file in folder.rglob("*"):
        assert file.is_dir() or mark.encode() not in file.read_bytes(), file
    assert "/tmp" not in (folder / "results.json").read_text()
    assert results.command == "codo ablate '../my grid.yaml' --out out"
    assert "Run these where <code>codo ablate</code> was run" in (folder / "report.html").read_text()
    assert results.cells[0].failure == f"OSError: ../data/x.png: see out/jobs/{failed.name}/log.txt, or ."
    assert "command" not in results.environment


def test_the_commands_of_a_cell_run_as_they_are_printed(plan, monkeypatch, squares):
    monkeypatch.setenv("CODO_DATA", str(squares.parent))
    pretrain, transfer, probe = gather(plan).cells[0].commands
    name = plan.cells[next(iter(plan.cells))].pretrain
    assert pretrain == f"codo pretrain --config out/jobs/{name}/config.yaml --out NEW-FOLDER"
    assert transfer.startswith("codo transfer --config out/jobs/transfer-")
    assert probe.startswith(f"codo probe out/jobs/{name}/run --canvas 64")
    assert probe.endswith('--backgrounds "${CODO_DATA}"/squares --out NEW-FOLDER/probe.json')
    assert Path(shlex.split(pretrain)[3]).is_file()
    file = plan.grid.file.model_copy(update={"processes": 2})
    pretrain, _, probe = gather(replace(plan, grid=replace(plan.grid, file=file))).cells[0].commands
    assert pretrain.startswith("torchrun --standalone --nproc-per-node 2 -m codo.cli pretrain --config out/")
    assert probe.startswith("codo probe")


def test_paths_are_written_without_places(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setenv("CODO_DATA", "../data")
    for text, expected in {
        f"{tmp_path}/a/b/../data/cards": "${CODO_DATA}/cards",
        f"{tmp_path}/a/b": ".",
        f"{tmp_path}/a/b/out/x y": "out/x y",
        f"{tmp_path}/a/c.yaml": "../c.yaml",
        f"{tmp_path}/far/my data": "PATH/my data",
        f"see {tmp_path}/a/b, then {tmp_path}/far/x: 3 / 4 of 1/2": "see ., then PATH/x: 3 / 4 of 1/2",
        f"{tmp_path}/a/bee": "../bee",
        "https://example.org/x and/or ../y": "https://example.org/x and/or ../y",
        f"error:{tmp_path}/far/x": "error:PATH/x",
        "alignment": "alignment",
    }.items():
        assert without_places(text) == expected


def test_contact_sheets_that_are_drawn_stay_in_the_results_of_an_interrupted_grid(plan):
    folder = plan.store.path.parent / "grid"
    assert gather(plan).samples == {}
    drawn = draw_samples(plan, folder)
    assert set(drawn) == {row.name for row in plan.grid.rows}
    assert gather(plan).samples == drawn
    (folder / drawn["no hierarchy"]).unlink()
    assert set(gather(plan).samples) == set(drawn) - {"no hierarchy"}


def test_a_part_that_cannot_draw_is_told_and_a_pretraining_that_is_not_done_is_not_drawn(plan, monkeypatch, capsys):
    asked = []

    def draw(config: Any, samples: int, out: Path) -> None:
        asked.append(config.hierarchy)
        raise ValueError("operands\ndo not match")

    monkeypatch.setattr("codo.jobs.ablate.collect.preview", draw)
    done = plan.cells[next(key for key in plan.cells if key.row != "no hierarchy")].pretrain
    for job in jobs_of(plan, "pretrain"):
        if job.name != done:
            job.result.unlink()
    assert draw_samples(plan, plan.store.path.parent / "grid") == {}
    assert asked == [True]
    said = f"warning: no samples of row {plan.grid.reference} are drawn: ValueError: operands do not match\n"
    assert capsys.readouterr().err == said


def test_the_base_is_told_apart_from_the_reference(write_grid, tmp_path):
    made = make_plan(load_grid(write_grid(reference="no hierarchy", include_none=True)), Store(tmp_path / "jobs"))
    results = gather(made)
    assert results.reference == "no hierarchy"
    assert {row.name: row.changes for row in results.rows}[results.base] == {}


def test_the_plans_notices_are_in_the_results_and_told(plan, tmp_path):
    said = "2 transfer jobs are those of another version of the code, as --accept-code-change asks"
    results = gather(replace(plan, notices=[said]))
    assert results.notices == [said]
    assert said in page_of(results, tmp_path / "grid")
    assert said in told(results)


def test_probes_in_the_course_of_a_pretraining_are_drawn_where_there_are_any(plan, tmp_path):
    folder = tmp_path / "grid"
    write_report(folder, gather(plan))
    assert not list((folder / "figures").glob("history-*"))
    for number, job in enumerate(jobs_of(plan, "pretrain")):
        lines = [{"step": s, "epoch": s / 2, "loss": 1.0, "probe/hard_top1": number + 0.1 * s} for s in (2, 4)]
        lines += [{"step": 5, "epoch": 2.5, "loss": 1.0}]
        (job.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = gather(plan)
    assert results.cells[0].probe_curves == {"probe/hard_top1": [(1.0, 0.2), (2.0, 0.4)]}
    write_report(folder, results)
    assert [f.name for f in (folder / "figures").glob("history-*.svg")] == ["history-hard-top1.svg"]
    assert "no hierarchy (n = 2)" in (folder / "figures" / "history-hard-top1.svg").read_text()


def test_frozen_parts_that_a_row_did_not_pretrain_are_told(plan, tmp_path):
    assert "not pretrained in" not in told(gather(plan))
    for key, cell in plan.cells.items():
        if key.row == "no hierarchy":
            finish(plan.store.folder(cell.transfers[0]), frozen_but_fresh=["fpn", "box_head"])
    results = gather(plan)
    said = "tuned freezes fpn, box_head, which is not pretrained in no hierarchy: random"
    assert said in told(results)
    assert said in page_of(results, tmp_path / "grid")


def test_what_a_pretraining_warned_of_and_its_accuracies_are_told(plan, tmp_path):
    folder = tmp_path / "here" / "out" / "grid"
    assert "have warned" not in told(gather(plan))
    for key, cell in plan.cells.items():
        if key.row == "no hierarchy":
            warning = f"warning: keys <of seed {key.seed}> are told by age"
            changes = {"queue_accuracy": 0.98, "batch_accuracy": 0.1 + 0.1 * key.seed}
            finish(plan.store.folder(cell.pretrain), warnings={"shortcut": warning}, **changes)
        elif cell.pretrain:
            finish(plan.store.folder(cell.pretrain), queue_accuracy=None, batch_accuracy=0.5, warnings={})
    results = gather(plan)
    said = "pretrainings have warned (no hierarchy, seed 0, 1), the first of them: keys <of seed 0> are told by age"
    assert told(results).count(said) == 1
    page = page_of(results, folder)
    assert said.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "pretrain/batch_accuracy" in page
    assert said in (folder / "table.md").read_text().replace("\\", "").replace("&lt;", "<").replace("&gt;", ">")
    finish(plan.store.folder(plan.cells[CellKey("full", "tuned", 1)].pretrain), warnings={"shortcut": "warning: more"})
    assert "have warned (full, seed 1; no hierarchy, seed 0, 1), the first of them: more" in told(gather(plan))
    lines = list(csv.DictReader((folder / "results.csv").open()))
    found = {(r["row"], r["seed"]): (r["pretrain/queue_accuracy"], r["pretrain/batch_accuracy"]) for r in lines}
    assert found["no hierarchy", "1"] == ("0.98", "0.2")
    assert found["full", "1"] == ("", "0.5")


def test_a_cell_of_repeated_transfers_has_their_mean(write_grid, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    grid = load_grid(write_grid(repeats=3, include_none=True))
    plan = make_plan(grid, Store(tmp_path / "here" / "out" / "jobs"))
    assert plan.counts() == {"pretrain": (4, 4, 4), "transfer": (18, 18, 18), "probe": (0, 0, 0)}
    seeds = [plan.jobs[name].settings.seed for name in plan.cells[CellKey("full", "tuned", 1)].transfers]
    assert seeds == [1, 1001, 2001]
    values = {key: [[1.0, 2.0, 6.0], [2.0, 5.0, 8.0]][key.seed] for key in plan.cells}
    for key, cell in plan.cells.items():
        if cell.pretrain:
            finish(plan.store.folder(cell.pretrain))
        for name, value in zip(cell.transfers, values[key], strict=True):
            value += 10 * (key.row == "random") * value
            curve = [{"step": 5, "epoch": 1.0, "AP": value / 2}, {"step": 10, "epoch": 2.0, "AP": value}]
            changes = {"metrics": {"AP": value, "APs": None if value == 1 else 1.0}, "errors": {"missed": value}}
            finish(plan.store.folder(name), **changes, curve=curve, curve_area=value / 2, train_seconds=60.0)
    results = gather(plan)
    assert (results.repeats, {cell.status for cell in results.cells}) == (3, {"done"})
    cell = results.cell("full", "tuned", 0)
    assert cell.metrics == {"AP": 3.0, "APs": None, "curve_area": 1.5}
    assert [tree["AP"] for tree in cell.repeats] == [1.0, 2.0, 6.0]
    assert [(p.step, p.epoch, p.AP) for p in cell.curve] == [(5, 1.0, 1.5), (10, 2.0, 3.0)]
    assert cell.errors == {"missed": 3.0}
    assert list(cell.folders) == ["pretrain", "transfer", "transfer 2", "transfer 3"] == list(cell.fingerprints)
    assert sum("transfer" in command for command in cell.commands) == 3
    # Within a cell: variances 7 and 9. From seed to seed: 3 and 5. The random row has other weights each time.
    noise = analyse(results, "tuned").noise
    assert noise is not None
    assert (noise.cells, noise.within**2, noise.seeds**2) == (4, pytest.approx(8), pytest.approx(2))
    assert noise.single**2 == pytest.approx(2 + 8 * 2 / 3)
    page = page_of(results, tmp_path / "grid")
    said = "From one pretraining they differ by ±2.83 AP (standard deviation, pooled over 4 cells of pretrained rows)"
    for text in (page, told(results), *((tmp_path / "grid" / name).read_text() for name in ("table.md", "table.tex"))):
        assert said in " ".join(text.replace(r"$\pm$", "±").split())
    assert "transfer: 18 runs, 18 min" in page
    lines = list(csv.DictReader(io.StringIO((tmp_path / "grid" / "results.csv").read_text())))
    assert [lines[2][f"AP of transfer {i}"] for i in (1, 2, 3)] == ["1.0", "2.0", "6.0"]
    # A cell is done when all of its transfers are.
    last = plan.store.folder(plan.cells[CellKey("full", "tuned", 0)].transfers[2])
    last.result.unlink()
    cell = gather(plan).cell("full", "tuned", 0)
    assert (cell.status, cell.metrics, cell.seconds["transfer 2"]) == ("missing", {}, 60.0)
    cell = gather(plan, {last.name: "broken"}).cell("full", "tuned", 0)
    assert (cell.status, cell.failure, cell.failures) == ("failed", "broken", {"transfer 3": "broken"})
    display = Display(plan, {name: "done" if plan.store.folder(name).done else "running" for name in plan.jobs})
    assert display.cell(CellKey("full", "tuned", 0)) == "[cyan]train 67%[/]"
    assert display.cell(CellKey("full", "tuned", 1)) == "[bold]5.0[/]"
    assert display.about(last.name).startswith("transfer full, seed 0, 3 of 3 [")


def test_seeds_of_repeated_transfers_are_no_seeds_of_cells(write_grid):
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: seeds: below 1000 where transfers are repeated"):
        load_grid(write_grid(repeats=2, seeds=[0, 1000]))
    assert load_grid(write_grid(seeds=[0, 1000])).file.repeats == 1
