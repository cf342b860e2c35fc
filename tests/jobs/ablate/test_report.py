"""The report: complete, escaped, self-contained, whatever is missing."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console

from codo.errors import CodoError
from codo.jobs.ablate.analysis import analyse
from codo.jobs.ablate.report import FILES, terminal_table, write_report
from codo.jobs.ablate.report.figures import draw
from codo.jobs.ablate.report.picture import add_legend, panel, short_label
from codo.jobs.ablate.report.probes import HEADLINE
from codo.jobs.ablate.report.tables import cells_csv, comparisons_csv, latex, latex_escape, markdown
from codo.jobs.ablate.report.words import design_note, sentence
from codo.jobs.ablate.results import Cell, Probed, Results
from codo.jobs.ablate.statistics import judge, of_differences
from tests.jobs.ablate.synthetic import CHANGES, draw_samples, make_factorial, make_results

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What the tests ask of a page: balanced tags, ids, links, texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("grid")
    results = make_results()
    results.title = "Grid <b>&amp; co</b>"
    draw_samples(results, folder)
    results.samples["no jitter"] = "samples/absent.png"
    (folder / "samples" / "broken.png").write_text("no image")
    results.samples["no hierarchy"] = "samples/broken.png"
    results.write(folder / "results.json")
    write_report(folder, results)
    return folder, results


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page((written[0] / "report.html").read_text(encoding="utf-8"))


def test_everything_is_written(written):
    folder, _ = written
    for name in FILES:
        assert (folder / name).stat().st_size > 500, name
    stems = {path.stem for path in (folder / "figures").iterdir()}
    assert {"loss", "probe-background-top1", "curves-1-cards-100-labels-fine-tuned"} <= stems
    assert len([s for s in stems if s.startswith(("differences", "errors", "curves"))]) == 6
    for stem in stems:
        with Image.open(folder / "figures" / f"{stem}.png") as image:
            assert image.width > 700
        ElementTree.parse(folder / "figures" / f"{stem}.svg")


def test_the_page_fetches_nothing_and_runs_nothing(written, page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), value
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import", text)


def test_what_comes_from_data_is_escaped(page):
    assert "RuntimeError: <script>alert('loss')</script> is not finite" in page.text
    assert "Grid <b>&amp; co</b>" in page.text
    assert "<one> view & $5_%" in page.text


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            if (attributes.get(name) or "").startswith("#"):
                assert attributes[name][1:] in ids


def test_the_page_can_be_heard(page):
    """Tables have captions and scopes, pictures have words."""
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert all(a.get("scope") in ("row", "col") for tag, a in page.tags if tag == "th")
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert tags.count("img") == 3
    assert dict(page.tags[0][1])["lang"] == "en"


def test_the_page_says_what_the_numbers_say(written, page):
    _, results = written
    for protocol in results.protocols:
        for c in analyse(results, protocol).comparisons.values():
            labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
            assert f"{c.name}: {sentence(c, 'AP')}" in labels
    for said in (
        "4 of 5: seed 1 failed",
        "4 of 5: seed 4 missing",
        "1 failed",
        "68 of 70 cells done",
        "absent.png is not there",
        "broken.png cannot be read",
        "Do the probes tell AP?",
    ):
        assert said in page.text, said
    assert "background: false" in page.text
    assert "packages.torch" in page.text
    for command in results.cells[0].commands:
        assert command in page.text
    assert results.cells[0].fingerprints["transfer"] in page.text
    assert results.command in page.text


def test_figures_take_the_pages_colours(written):
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    drawn = text[text.index('<section id="curves"') :]
    assert "stroke: currentColor" in drawn
    assert "var(--series-0)" in drawn
    assert "#101010" not in drawn
    assert "--series-0" not in (written[0] / "figures" / "loss.svg").read_text()


def test_a_report_is_the_same_when_written_again(written, tmp_path):
    folder, results = written
    (tmp_path / "samples").mkdir()
    for sample in (folder / "samples").iterdir():
        (tmp_path / "samples" / sample.name).write_bytes(sample.read_bytes())
    write_report(tmp_path, Results.read(folder / "results.json"))
    for name in (*FILES, "figures/loss.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert results == Results.read(folder / "results.json")


def test_the_csv_has_a_line_a_cell(written):
    folder, results = written
    rows = list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))
    assert len(rows) == len(results.cells) == 70
    first, cell = rows[0], results.cells[0]
    assert float(first["AP"]) == cell.metrics["AP"]
    assert float(first["errors/missed"]) == cell.errors["missed"]
    assert first["fingerprints/pretrain"] == cell.fingerprints["pretrain"]
    assert first["APs"] == ""
    failed = next(r for r in rows if r["status"] == "failed")
    assert "<script>" in failed["failure"]
    assert failed["AP"] == ""


def test_the_csv_of_curves_has_a_line_an_evaluation(written):
    folder, results = written
    rows = list(csv.DictReader((folder / "curves.csv").open(encoding="utf-8")))
    assert len(rows) == sum(len(cell.curve) for cell in results.cells)
    cell = next(c for c in results.cells if c.curve)
    of_cell = [r for r in rows if (r["row"], r["protocol"], int(r["seed"])) == (cell.row, cell.protocol, cell.seed)]
    assert [(int(r["step"]), float(r["epoch"]), float(r["AP"])) for r in of_cell] == [
        (p.step, p.epoch, p.AP) for p in cell.curve
    ]


def test_the_csv_of_differences_has_what_was_computed():
    values = {(a, b): [10.0 + a, 11.0 + a + b, 12.5 + 2 * b] for a in (False, True) for b in (False, True)}
    results = make_factorial(values, ["A", "B"])
    found = list(csv.DictReader(io.StringIO(comparisons_csv(results, [analyse(results, "p")]))))
    assert [r["name"] for r in found] == ["- B", "A -", "A B", "A", "B", "A × B"]
    effect = analyse(results, "p").effects[1]
    assert float(found[4]["p_holm"]) == pytest.approx(effect.p_holm)
    assert found[4]["verdict"] == effect.verdict


def test_markdown_is_bold_where_a_row_helps_and_nowhere_else():
    results = make_results()
    results.reference = "no alignment"
    analyses = [analyse(results, p) for p in results.protocols]
    text = markdown(results, analyses)
    escaped = {"<one> view & $5_%": "&lt;one&gt; view &amp; $5\\_%"}
    for a in analyses:
        part = text[text.index(f"## {a.protocol}") :]
        for name, c in a.comparisons.items():
            line = next(x for x in part.splitlines() if x.startswith(f"| {escaped.get(name, name)} |"))
            assert ("**" in line) == (c.verdict == "helps")
            assert c.verdict in line
    assert any(c.verdict == "helps" for c in analyses[0].comparisons.values())


def test_latex_is_escaped_and_even():
    results = make_results()
    text = latex(results, [analyse(results, p) for p in results.protocols])
    rows = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(rows) == 7
    assert all(len(re.findall(r"(?<!\\)&", row)) == 4 and row.endswith(r"\\") for row in rows)
    assert r"\textless{}one\textgreater{} view \& \$5\_\%" in text
    assert "(4/5)" in text
    assert text.count("{") == text.count("}")
    assert text.isascii()
    assert latex_escape(r"\a{b}~^") == r"\textbackslash{}a\{b\}\textasciitilde{}\textasciicircum{}"


def test_the_terminal_has_the_verdicts_and_the_gaps():
    console = Console(width=140, file=io.StringIO())
    console.print(terminal_table(make_results()))
    text = console.file.getvalue()
    assert "▼ hurts" in text
    assert "? not enough seeds to tell" in text
    assert "no hierarchy: n = 4 of 5: seed 1 failed" in text
    assert "[red]" not in text


def test_probes_stand_where_the_transfer_failed(tmp_path):
    results = make_results(seeds=1)
    results.protocols, results.rows = results.protocols[:1], results.rows[:2]
    for cell in results.cells:
        cell.status, cell.curve, cell.loss, cell.errors = "failed", [], [], {}
        cell.metrics = {name: v for name, v in cell.metrics.items() if name.startswith("probe/")}
    write_report(tmp_path, results)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert f"{results.cells[0].metrics['probe/rank']:.3f}" in text
    assert (tmp_path / "figures" / "probe-rank.png").exists()


@pytest.mark.parametrize("state", ["empty", "failed", "one seed", "undefined", "no cells", "one row"])
def test_a_grid_in_any_state_has_a_report(tmp_path, state):
    results = make_results(seeds=1)
    results.protocols = results.protocols[:1]
    for cell in results.cells:
        if state in ("empty", "failed"):
            cell.status = "failed" if state == "failed" else "missing"
            cell.metrics, cell.curve, cell.loss, cell.errors, cell.seconds = {}, [], [], {}, {}
        if state == "undefined":
            cell.metrics, cell.curve = {"AP": None}, [p.model_copy(update={"AP": None}) for p in cell.curve]
            cell.loss = [(0, float("nan"))]
    if state == "no cells":
        results.cells = []
    results.rows = results.rows[: 1 if state == "one row" else 3]
    results.cells = [c for c in results.cells if c.row in {r.name for r in results.rows}]
    write_report(tmp_path, results)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "not enough seeds to tell" in text
    assert "nan" not in text


def test_a_ladder_shows_its_steps_and_a_factorial_its_effects(tmp_path):
    results = make_results(seeds=3)
    results.design, results.protocols = "ladder", results.protocols[:1]
    results.rows = results.rows[:3]
    results.cells = [
        Cell.model_validate(c.model_dump()) for c in results.cells if c.row in ("codo", "no background", "no alignment")
    ]
    write_report(tmp_path, results)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert text.index("Difference to the row before") < text.index("Difference to codo")
    assert "against no background" in text
    assert (tmp_path / "figures" / "differences-1-cards-100-labels-fine-tunedb.svg").exists()
    factorial = make_factorial({(a,): [10.0 + 2 * a, 11.1 + 2 * a, 12.5 + 2.3 * a] for a in (False, True)}, ["A"])
    write_report(tmp_path, factorial)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Main effects and interactions" in text


@pytest.mark.parametrize("name", ["CoDo", "background + alignment + hierarchy", "a" * 70])
def test_the_legend_stays_on_the_paper(name):
    results = make_results(seeds=2)
    results.rows = [r.model_copy(update={"name": f"{i} {name}"}) for i, r in enumerate(results.rows)]
    new = dict(zip(CHANGES, results.rows, strict=True))
    results.cells = [c.model_copy(update={"row": new[c.row].name}) for c in results.cells]
    results.reference = results.rows[0].name
    for picture in draw(results, [analyse(results, p) for p in results.protocols]):
        for legend in picture.figure.legends:
            picture.figure.draw_without_rendering()
            box, paper = legend.get_window_extent(), picture.figure.bbox
            assert paper.x0 <= box.x0 < box.x1 <= paper.x1, picture.name
            assert paper.y0 <= box.y0, picture.name


@pytest.mark.parametrize("name", ["r", "background + alignment + hier"])
@pytest.mark.parametrize("rows", [9, 33, 40])
def test_many_rows_leave_the_panel_its_height(rows, name):
    with warnings.catch_warnings(), panel(height=3.7) as (figure, axes):
        warnings.simplefilter("error")
        drawn = [line for i in range(rows) for line in axes.plot([0, 1], [i, i], label=f"{i} {name} (n = 2)")]
        add_legend(figure, drawn)
        figure.draw_without_rendering()
        assert axes.get_window_extent().height / figure.dpi > 1.9
    grown = figure.get_figheight() - 3.7
    assert rows > 9 or grown == pytest.approx(0 if name == "r" else 0.895, abs=0.01), "as before"


def test_labels_of_a_rows_trials_are_told_apart():
    trials = [short_label(f"background + alignment + hierarchy, optim.lr={lr}") for lr in (0.01, 0.03)]
    assert trials == ["background + ali…y, optim.lr=0.01", "background + ali…y, optim.lr=0.03"]
    assert short_label("x" * 34) == "x" * 34


def test_odd_names_draw(tmp_path):
    """Math signs, a leading underscore and length mean something to matplotlib."""
    results = make_results(seeds=2)
    results.protocols = results.protocols[:1]
    names = {"codo": "_$x^2$", "no background": "no " + "very " * 20 + "long"}
    results.rows = [r.model_copy(update={"name": names[r.name]}) for r in results.rows[:2]]
    results.cells = [c.model_copy(update={"row": names[c.row]}) for c in results.cells if c.row in names]
    results.reference = "_$x^2$"
    write_report(tmp_path, results)
    assert "_$x^2$ (n = 2)" in (tmp_path / "figures" / "loss.svg").read_text()


def test_a_sample_may_not_lie_outside(tmp_path):
    (tmp_path / "grid").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    results = make_results(seeds=1)
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        results.samples = {"codo": path}
        with pytest.raises(CodoError, match="lies outside"):
            write_report(tmp_path / "grid", results)


def test_a_sample_is_read_by_no_reader_that_starts_a_program(tmp_path, monkeypatch):
    """Pillow's reader of EPS runs Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: started.append(given))
    (tmp_path / "samples").mkdir()
    results = make_results(seeds=1)
    for row, name in (("codo", "samples/x.eps"), ("no jitter", "samples/x.png")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "EPS")
        results.samples[row] = name
    write_report(tmp_path, results)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "x.eps cannot be read" in text
    assert "x.png cannot be read" in text
    assert started == []


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    results = make_results(seeds=1)
    results.protocols, results.rows = results.protocols[:1], results.rows[:2]
    names = {row.name for row in results.rows}
    results.cells = [c for c in results.cells if c.row in names and c.protocol in results.protocols]
    write_report(tmp_path, results)
    before = {path.name for path in (tmp_path / "figures").iterdir()}
    (tmp_path / "figures" / "notes.txt").touch()
    results.protocols = ["renamed"]
    results.cells = [c.model_copy(update={"protocol": "renamed"}) for c in results.cells]
    write_report(tmp_path, results)
    after = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"curves-1-renamed.png", "curves-1-renamed.svg", "loss.png", "notes.txt"} <= after
    assert "curves-1-cards-100-labels-fine-tuned.svg" in before - after
    assert not [name for name in after if "cards" in name]


def test_a_reference_that_is_no_row_is_refused(tmp_path):
    results = make_results(seeds=1)
    results.reference = "absent"
    with pytest.raises(CodoError, match="'absent' is not a row"):
        write_report(tmp_path, results)


def test_a_damaged_results_json_is_told_where(tmp_path):
    results = make_results(seeds=1).model_dump()
    (tmp_path / "results.json").write_text(json.dumps(results | {"seeds": ["x"]}))
    with pytest.raises(CodoError, match=r"results.json as results: seeds.0: Input should be a valid integer"):
        Results.read(tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"title"')
    with pytest.raises(CodoError, match=r"results.json as results: Invalid JSON: EOF"):
        Results.read(tmp_path / "results.json")
    with pytest.raises(CodoError, match=r"runs/1/results.json is not there: the folder of a grid is expected"):
        Results.read(tmp_path / "runs" / "1" / "results.json")
    with pytest.raises(CodoError, match=r"cannot read .*: Is a directory"):
        Results.read(tmp_path)


def test_cells_csv_without_metrics():
    results = make_results(seeds=1)
    results.cells = [Cell(row="codo", protocol=results.protocols[0], seed=0, status="missing")]
    assert cells_csv(results).splitlines()[0] == "row,protocol,seed,status,failure"


def test_means_over_fewer_seeds_say_so(tmp_path):
    results = make_results(seeds=3)
    results.protocols, results.rows = results.protocols[:1], results.rows[:4]
    names = [row.name for row in results.rows]
    results.cells = [c for c in results.cells if c.row in names and c.protocol == results.protocols[0]]
    write_report(tmp_path, results)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    metrics = html[html.index("Other metrics") : html.index('<section id="curves"')]
    assert metrics.count("(n = 2 of 3)") == 3, "AP50, AP75 and the area; APs is undefined everywhere"
    times = html[html.index("epochs to") : html.index('<section id="errors"')]
    assert times.count('<td class="n">2 of 3</td>') == 1
    errors = html[html.index("In numbers, ") : html.index('<section id="pretraining"')]
    assert errors.count('<td class="n">2 of 3</td>') == 1
    probes = html[html.index('<section id="pretraining"') : html.index('<section id="rows"')]
    assert probes.count("(n = 2 of 3)") == 6, "five probes, and the loss"
    for name in ("errors-1", "curves-1"):
        drawn = next((tmp_path / "figures").glob(f"{name}*.svg")).read_text()
        assert "no hierarchy (n = 2 of 3)" in drawn
        assert "codo (n = 3)" in drawn


def test_a_difference_over_fewer_seeds_than_the_row_has_says_so(tmp_path):
    results = make_results(seeds=4)
    results.protocols, results.rows = results.protocols[:1], results.rows[:2]
    names = [row.name for row in results.rows]
    results.cells = [c for c in results.cells if c.row in names and c.protocol == results.protocols[0]]
    next(c for c in results.cells if (c.row, c.seed) == (results.reference, 2)).status = "failed"
    write_report(tmp_path, results)
    console = Console(width=200, file=io.StringIO())
    console.print(terminal_table(results))
    for text in (
        Page((tmp_path / "report.html").read_text(encoding="utf-8")).text,
        (tmp_path / "table.md").read_text(encoding="utf-8"),
        (tmp_path / "table.tex").read_text(encoding="utf-8"),
        console.file.getvalue(),
    ):
        assert "] (n = 3)" in text


def test_of_many_probes_the_headlines_are_drawn_and_all_are_in_a_table_a_representation(tmp_path):
    results = make_results(seeds=2)
    results.protocols, results.rows = results.protocols[:1], results.rows[:2]
    results.cells = [c for c in results.cells if c.row in ("codo", "no background")]
    measures = ["hard_top1", "hard_map", "view_hard_top1", "variance_ratio", "box_slope", "effective_rank", "knn"]
    names = [f"{place}{name}" for place in ("", "c4/", "box_head/") for name in measures]
    chance = {"probe/hard_top1": 0.0625, "probe/variance_ratio": 7.0}
    for cell in results.cells:
        cell.metrics = {"AP": 1.0} | {f"probe/{name}": 0.25 + 0.1 * cell.seed for name in names}
        cell.probed = Probed(held_out=True, images="a", chance=chance)
    write_report(tmp_path, results)
    drawn = {path.stem for path in (tmp_path / "figures").glob("probe-*.svg")}
    assert drawn == {f"probe-{name.replace('_', '-').replace('/', '-')}" for name in HEADLINE}
    assert "dotted: chance, 0.0625" in (tmp_path / "figures" / "probe-hard-top1.svg").read_text()
    assert "chance: 7" in (tmp_path / "figures" / "probe-variance-ratio.svg").read_text(), "too far for a line"
    assert "chance" not in (tmp_path / "figures" / "probe-knn.svg").read_text()
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    tables = [t for t in html.split("<table")[1:] if 'class="still"' in t]
    assert ["backbone:" in tables[0], "c4:" in tables[1], "box_head:" in tables[2], len(tables)] == [True] * 3 + [3]
    assert all(t.count("<tr>") == 1 + len(measures) for t in tables)
    assert '<th scope="row">hard_top1</th><td class="n">0.062</td><td class="n">0.300 ± 0.071</td>' in tables[0]
    assert "chance" not in tables[1]


def test_without_a_margin_no_seeds_are_asked_for():
    c = of_differences("a", "b", {0: 0.1, 1: -0.2, 2: 0.3}, {})
    (with_margin,), (without,) = judge([c], 0.1), judge([c], 0.0)
    assert "±0.1 AP would take about" in sentence(with_margin, "AP")
    assert sentence(without, "AP").endswith("n = 3; there is no margin: the reference's mean is 0")


def test_the_note_is_true_of_the_reference():
    results = make_results(seeds=1)
    assert design_note(results).startswith(
        "Each row is codo with one thing changed. A difference below zero, its dot left of zero: the row's mean is "
        "lower by so much; the verdict says whether the seeds show a difference."
    )
    assert design_note(results).endswith("Not pretrained: not pretrained.")
    results.reference = "no jitter"
    assert design_note(results).startswith(
        "Each row is codo with one thing changed; the rows are compared to no jitter."
    )
    results.base = None
    assert design_note(results).startswith("Each row is the grid's base with one thing changed; the rows are compared")
    results.design = "ladder"
    assert "all the steps" not in design_note(results)
    results.base = results.reference
    assert "what all the steps to there are worth" in design_note(results)


def test_names_are_no_arguments_of_latex():
    results = make_results(seeds=3)
    for old, new in (("codo", "[tuned] codo"), ("no jitter", "*starred")):
        for thing in (*results.rows, *results.cells):
            if getattr(thing, "name", getattr(thing, "row", "")) == old:
                setattr(thing, "name" if hasattr(thing, "name") else "row", new)
    results.reference = "[tuned] codo"
    text = latex(results, [analyse(results, p) for p in results.protocols])
    assert "\n{}[tuned] codo & " in text
    assert "\n{}*starred & " in text
    assert "\nno background & " in text


def test_names_that_begin_as_a_list_does_are_no_list_in_markdown():
    results = make_results(seeds=3)
    results.design, results.protocols = "ladder", results.protocols[:1]
    names = {"codo": "+ alignment", "no background": "- jitter", "no alignment": "1. first", "no hierarchy": "0.5 x"}
    results.rows = [r.model_copy(update={"name": names[r.name]}) for r in results.rows[:4]]
    results.cells = [c.model_copy(update={"row": names[c.row]}) for c in results.cells if c.row in names]
    results.reference = "+ alignment"
    text = markdown(results, [analyse(results, p) for p in results.protocols])
    for line in (r"- \- jitter, against + alignment: ", r"- 1\. first, against - jitter: ", r"| \+ alignment |"):
        assert line in text, line
    assert not re.search(r"^- ([-+]|\d+[.)]) ", text, re.MULTILINE)
