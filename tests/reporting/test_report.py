"""The report: its figures against the stored ones, its pictures against Pillow, and what it is without data."""

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from avtcli.errors import AvtError
from avtcli.events import Event, Notice, Progress, ignore
from avtcli.input_files import parse_toml
from avtcli.reporting import collected_run, comparison, run_summary
from avtcli.reporting.collected_run import collect_runs
from avtcli.reporting.report import Report, write_report
from avtcli.reporting.sections import SECTIONS
from avtcli.reporting.sections.curves import _steps_per_epoch
from tests.reporting.browser import CHROMIUM, browser
from tests.reporting.test_comparison import made, probed, write

HOSTILE = "<img src=x onerror=alert(1)>'\"&`$x_1$"
VOID = ("meta", "link", "img", "input", "br", "path", "polygon", "image", "rect", "use")


@dataclass
class Node:
    """An element with its attributes, and the elements and texts in it."""

    tag: str
    attributes: dict[str, str]
    parts: list["Node | str"] = field(default_factory=list)

    @property
    def children(self) -> list["Node"]:
        return [part for part in self.parts if isinstance(part, Node)]

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag: str, **wanted: str) -> list["Node"]:
        """Elements in it with a tag, and a class or an id."""
        return [node for node in self.walk() if node.tag == tag and wanted.items() <= node.attributes.items()]

    def words(self) -> str:
        return " ".join(" ".join(part if isinstance(part, str) else part.words() for part in self.parts).split())


class Tree(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {"class" if key == "class" else key: value or "" for key, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def page(report: Report) -> Node:
    return Tree(Path(report.file).read_text(encoding="utf-8")).root


def section(root: Node, name: str) -> Node:
    (found,) = root.all("section", id=name)
    return found


def evaluation(step: int) -> dict[str, Any]:
    """What `avt evaluate` stores, with figures that occur nowhere else."""
    levels = [0.25, 0.5, 0.75]
    judged = {"nll": 3.21, "calibration_error": 0.123, "coverage": levels}
    ridge = {"layer": "conv2", "mace_px": 14.4, "r2": 0.41, "r2_per_parameter": {"a": 0.4}}
    return {
        **dict.fromkeys(("right_turns", "mace_px_right_turn", "retrieval", "accuracy")),
        **{
            "step": step,
            "count": 7,
            "dataset": "mini",
            "mace_px": 12.3,
            "r2": 0.51,
            "r2_per_parameter": {"a": 0.5},
            "nll": 3.3,
        },
        "calibration": {
            "levels": levels,
            "pooled": levels,
            "per_parameter": {"a": levels},
            "temperature": {"temperature": 0.77, "before": judged, "after": {**judged, "calibration_error": 0.045}},
        },
        "baselines": {"constant": {"mace_px": 24.6}},
        "ridge": [{**ridge, "random": {**ridge, "mace_px": 18.45}}],
        "protocol": {"transform": {"name": "affine"}, "target": {"a": ""}, "split": "the test images of the protocol"},
    }


def measured(run: Path, *, step: int) -> None:
    """Store a probe, with its baseline, and an evaluation in a run folder."""
    probed(run, "a", 82.5, 83.5, step=step)
    content = json.loads((run / "probes" / "a.json").read_text())
    baseline = [{**result, "top1": 60.0 + 2 * i} for i, result in enumerate(content["results"])]
    write(run / "probes" / "a.json", {**content, "baseline": baseline})
    write(run / "evaluate.json", evaluation(step))


@pytest.fixture(scope="module")
def full(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on a run with a name of markup, a probe, an evaluation and an image that was skipped."""
    run = tmp_path_factory.mktemp("report") / HOSTILE
    shutil.copytree(tiny_run, run)
    measured(run, step=9)
    (run / "bad_images.csv").write_text('split,name,reason\ntrain,<b>.png,"not an <image>"\n')
    report = write_report([run], out=None)
    assert Path(report.file) == run / "report.html"
    return report


def test_all_sections_are_there_and_none_is_left_out(full: Report) -> None:
    files = {path.stem for path in Path("avtcli/reporting/sections").glob("*.py")} or set(SECTIONS)

    assert full.left_out == {}
    assert set(full.sections) == set(SECTIONS) - {"comparison_tables"}  # of several runs
    assert {name for name in files if not name.startswith("_")} == set(SECTIONS)
    assert [node.attributes["id"] for node in page(full).all("section")] == full.sections


def test_figures_are_the_stored_ones(full: Report) -> None:
    root = page(full)
    (probe,) = (row for row in section(root, "probe_tables").all("tr") if "conv2" in row.words())
    bars = {bar.attributes["class"]: bar.attributes["style"] for bar in probe.all("span")}
    rows = {row.words().split(" px")[0] for row in section(root, "equivariance_figures").all("tr")}
    calibration = section(root, "decoder_calibration").words()

    assert "83.0 %" in probe.words()  # the mean of both seeds
    assert "61.0 % (+22.0)" in probe.words()
    assert bars == {"bar own": "width:83.00%", "bar baseline": "width:61.00%"}
    assert {"decoder 12.3", "ridge on conv2 14.4", "constant 24.6"} <= rows
    assert all(text in calibration for text in ("0.123", "0.045", "0.77"))
    assert "the test images of the protocol" in section(root, "equivariance_figures").all("details")[0].words()


def test_settings_environment_and_skipped_images_are_shown(full: Report) -> None:
    root = page(full)
    settings = section(root, "run_settings")
    rows = {row.children[0].words(): row.words() for row in settings.all("tr")}
    environment = json.loads((Path(full.runs[0]) / "env.json").read_text())

    assert rows["backbone.width"] == "backbone.width 0.05 1"
    assert rows["limit_train"] == "limit_train 40 not set"
    assert "optimizer.name" not in rows  # as the recipe
    stored = parse_toml((Path(full.runs[0]) / "config.toml").read_text(), Path("config.toml"))
    assert (stored["channels_last"], stored["optimizer"]["fused"], stored["precision"]) == (True, True, "fp32")
    assert not {"channels_last", "optimizer.fused", "precision", "compile", "capture"} & {*rows}  # chosen for the device
    assert environment["versions"]["torch"] in settings.words()
    assert environment["host"] not in settings.words().split()
    assert environment["failure"] is None
    labels = {label.words() for label in settings.all("details")[-1].all("dt")}
    assert ("device" in labels, labels & {"failure", "steps"}) == (True, set())
    assert "<b>.png not an <image>" in section(root, "skipped_images").words()


def decoded(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)


def points(node: Node, kind: str) -> Any:
    (polygon,) = node.all("polygon", **{"class": kind})
    return np.array([[float(x) for x in pair.split(",")] for pair in polygon.attributes["points"].split()])


def test_the_task_comes_first_in_the_progress_of_a_report(tiny_run: Path) -> None:
    events: list[Event] = []
    shutil.copytree(tiny_run, "run")
    write_report([Path("run")], out=Path("page.html"), on_event=events.append)

    assert {event.task for event in events if isinstance(event, Progress)} == {"held-out images (run)"}


def test_outlines_pictures_and_errors_of_pairs_agree(full: Report) -> None:
    figures = section(page(full), "decoded_pairs").all("figure")

    assert len(figures) == 12
    for figure in figures:
        original, *others = (decoded(node.attributes["href"]) for node in figure.all("image"))
        quads = [points(figure, kind) for kind in ("true", "decoded")]
        assert figure.all("b")[-1].words() == f"{np.linalg.norm(quads[0] - quads[1], axis=1).mean():.1f} px"
        side = len(original)
        for quad, other in zip(quads, others, strict=True):
            system = []
            for (x, y), (u, v) in zip([(0, 0), (side, 0), (side, side), (0, side)], quad, strict=True):
                system += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            coefficients = np.linalg.solve(np.array(system, dtype=float), quad.flatten())
            image = Image.fromarray(original.astype(np.uint8))
            size, method, bilinear = (side, side), Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
            warped = image.transform(size, method, coefficients.tolist(), bilinear, fillcolor=128)
            assert np.abs(np.asarray(warped, dtype=float) - other).mean() < 3  # of 255: points have two digits


def test_neighbours_of_another_class_are_marked(full: Report) -> None:
    (block,) = section(page(full), "nearest_neighbours").all("div", **{"class": "neighbours"})

    assert len(block.children) == 8
    for row in block.children:
        query, *near = row.children
        assert len(near) == 7
        assert all((item.attributes["class"] == "other") == (item.words() != query.words()) for item in near)
        assert query.all("img")[0].attributes["src"] not in [item.all("img")[0].attributes["src"] for item in near]


def test_the_page_is_small_and_loads_nothing(full: Report) -> None:
    text = Path(full.file).read_text(encoding="utf-8")
    addresses = [value for node in page(full).walk() for key, value in node.attributes.items() if key.endswith(("src", "href"))]

    assert full.bytes == len(text.encode()) < 5e6
    assert len(addresses) > 100
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?://|@import|<script|url\((?!#)", text)


def test_markup_in_names_is_text(full: Report) -> None:
    root = page(full)

    assert root.all("h1")[0].words() == HOSTILE
    assert root.all("title")[0].words() == f"{HOSTILE} · avt report"
    assert not [node for node in root.all("img") if node.attributes["src"] == "x"]
    assert not [node for node in root.all("b") if node.words() == ".png"]


def test_markup_in_settings_and_results_is_text() -> None:
    run = made(Path("a"), config=f"seed = 0\nobjective.name = {json.dumps(HOSTILE)}\n{json.dumps(HOSTILE)} = 1\n")
    probed(run, "a", 50.0, layer="</style><script>alert(1)</script>")
    write(run / "env.json", {"command": ["avt", "</code><script>"], "</dd>": "<b>"})
    root = page(write_report([run], out=None))

    assert root.all("script") == []
    assert "</style><script>alert(1)</script>" in section(root, "probe_tables").words()
    assert HOSTILE in section(root, "run_settings").words()
    assert section(root, "run_settings").all("code")[-1].words() == "avt '</code><script>'"


def test_a_run_without_weights_and_results_says_what_is_missing() -> None:
    events: list[Event] = []
    report = write_report([made(Path("a"))], out=None, on_event=events.append)
    left_out = "".join(section(page(report), "left_out").words().split())

    assert report.sections == ["headline", "curves", "run_settings"]
    assert "avt probe a --layer all" in report.left_out["probe_tables"]
    assert "avt evaluate a" in report.left_out["equivariance_figures"]
    assert report.left_out["decoded_pairs"] == report.left_out["embedding_map"]  # why there are no images
    assert all("".join(reason.replace("`", "").split()) in left_out for reason in report.left_out.values())
    assert len([event for event in events if isinstance(event, Notice) and "images are left out" in event.text]) == 1


def test_results_with_other_fields_leave_one_section_out() -> None:
    run = made(Path("a"))
    measured(run, step=4)
    write(run / "evaluate.json", {"step": 4})
    report = write_report([run], out=None)

    assert "other fields" in report.left_out["equivariance_figures"]
    assert "probe_tables" in report.sections


def test_a_probe_without_results_leaves_its_section_out() -> None:
    run = made(Path("a"))
    probed(run, "a")
    report = write_report([run], out=None)

    assert "other fields" in report.left_out["probe_tables"]
    assert "headline" in report.sections


def test_the_best_probe_is_a_mean_over_seeds_of_the_pooling_that_held_out_images_prefer() -> None:
    run = made(Path("a"))
    probed(run, "a", 10.0, 90.0, layer="conv1")
    head = {"head": {"name": "knn", "description": "neighbours", "k": [5, 9]}}
    probed(run, "b", 70.0, 72.0, val_top1=60.0, protocol=head)
    probed(run, "c", 95.0, pool="avg", val_top1=59.0, protocol=head)
    path = run / "probes" / "b.json"
    content = json.loads(path.read_text())
    write(path, {**content, "baseline": [{**content["results"][0], "top1": top1} for top1 in (30.0, 35.0)]})
    write(run / "result.json", {"steps": 4, "mace_px": 12.0, "constant_mace_px": 23.7})  # its log has none
    root = page(write_report([run], out=None))
    shown = section(root, "headline").words()

    assert "mean corner error 12.0 px guessing: 23.7 px" in shown.replace("\N{NO-BREAK SPACE}", " ")
    assert "tested on 200 held-out training images · k 5, 9 · mean of 2 seeds" in section(root, "probe_tables").words()
    assert "best probe: conv2 knn 71.0 % random weights: 32.5 %" in shown.replace("\N{NO-BREAK SPACE}", " ")


def test_a_probe_on_several_data_sets_has_a_panel_for_each() -> None:
    run = made(Path("a"))
    data = [{"dataset": name, "test_images": count, "split": "test"} for name, count in (("mini", 200), ("other", 300))]
    probed(run, "a", 80.0, protocol={"data": data})
    path = run / "probes" / "a.json"
    content = json.loads(path.read_text())
    write(path, {**content, "results": [*content["results"], {**content["results"][0], "dataset": "other", "top1": 60.0}]})
    shown = section(page(write_report([run], out=None)), "probe_tables").words()

    assert "mini · 100 labelled images · tested on 200 test images conv2 · max 80.0 %" in shown
    assert "other · 100 labelled images · tested on 300 test images conv2 · max 60.0 %" in shown


@pytest.mark.parametrize("more", [[], [{"step": 5, "epoch": 2, "loss": 1.0}]])
def test_an_epoch_of_the_curves_has_the_steps_of_the_first(more: list[dict[str, Any]]) -> None:
    """Evaluations after an epoch carry the number of the next one."""
    run = made(Path("a"))
    lines = [{"step": 1, "epoch": 0, "loss": 2.0}, {"step": 2, "epoch": 0, "loss": 2.0}, {"step": 2, "epoch": 1, "eval": {}}]
    lines += [{"step": step, "epoch": 1, "loss": 2.0} for step in (3, 4)] if more else []
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    (collected,) = collect_runs([run], on_event=ignore)

    assert _steps_per_epoch(collected) == (2 if more else None)


def test_several_runs_are_next_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [made(Path(name), config=f"seed = 0\nlr = {i + 1}.5\n") for i, name in enumerate(("a", "b", "c"))]
    for run, top1 in zip(runs[:2], (71.0, 72.0), strict=True):
        probed(run, "a", top1)
    with monkeypatch.context() as patched:
        summarize = Mock(wraps=run_summary.summarize_run)
        for module in (collected_run, comparison):
            patched.setattr(module, "summarize_run", summarize)
        report = write_report([*runs, runs[0]], out=Path("three.html"))
    root = page(report)
    columns = section(root, "probe_tables").all("div", **{"class": "columns"})[0].children
    (settings, *_) = section(root, "comparison_tables").all("table")

    assert report.runs == ["a", "b", "c"]
    assert summarize.call_count == 3  # once each
    assert [node.words() for node in section(root, "curves").all("p", **{"class": "legend"})[0].all("span")] == ["a", "b", "c"]
    assert ["71.0 %" in columns[0].words(), "72.0 %" in columns[1].words(), "avt probe c" in columns[2].words()] == [True] * 3
    assert "lr 1.5 2.5 3.5" in [row.words() for row in settings.all("tr")]


def test_a_report_replaces_its_own_file_and_no_other() -> None:
    run = made(Path("a"))
    Path("mine.html").write_text("mine")
    write_report([run], out=None)

    assert write_report([run], out=None).file == "a/report.html"
    with pytest.raises(AvtError, match=r"mine\.html exists already"):
        write_report([run], out=Path("mine.html"))
    assert Path("mine.html").read_text() == "mine"


def test_the_command_prints_what_the_function_returns(avt: Callable[..., Any]) -> None:
    made(Path("a"))
    result = avt("report a --json")
    refused, shown = avt("report nothing"), avt("report a").stdout

    assert result.code == 0
    assert {reason: shown.count(reason) for reason in result.json["left_out"].values()} == dict.fromkeys(
        result.json["left_out"].values(), 1
    )
    assert "without decoded pairs, embedding map, first filters, nearest neighbours: " in shown
    assert result.json["bytes"] == Path("a/report.html").stat().st_size
    assert "left_out" in result.json
    assert (refused.code, "nothing is no run folder" in refused.stderr) == (2, True)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_refused_in_words(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(AvtError, match=rf"needs {package}.*pip install 'avtcli\[report\]'"):
        write_report([made(Path("a"))], out=None, on_event=ignore)


@pytest.mark.parametrize("installed", [True, False])
def test_the_demo_ends_with_a_report_where_it_can(
    installed: bool, avt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = SimpleNamespace(layer="conv2", pool="max", top1=2.0)
    stubs = {
        "training.pretrain.pretrain": SimpleNamespace(
            run=str(made(Path("a"))), seconds=1.0, mace_px=2.0, constant_mace_px=23.7
        ),
        "models.weights.open_weights": None,
        "probing.probe.probe": SimpleNamespace(results=[figure], baseline=[figure]),
        "exporting.export.export": SimpleNamespace(file="file", load_with="lines"),
    }
    for name, result in stubs.items():
        monkeypatch.setattr(f"avtcli.{name}", lambda *args, result=result, **named: result)
    if not installed:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = avt("demo")

    assert result.code == 0
    assert result.stderr.count("no report was written") == (0 if installed else 1)
    assert ("a/report.html" in result.stdout) == Path("a/report.html").is_file() == installed


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_it_without_complaint_at_any_width(full: Report) -> None:
    several = write_report([Path(full.runs[0]), *(made(Path(name)) for name in ("a", "b"))], out=Path("several.html"))
    with browser() as shown:
        for report, width, scheme in ((full, 360, "dark"), (full, 1280, "light"), (several, 360, "light")):
            shown.open(Path(report.file), width=width, prefers_color_scheme=scheme)
            assert shown.evaluate("document.documentElement.scrollWidth") == width
            assert shown.complaints() == []
            assert shown.evaluate("document.querySelectorAll('section').length") == len(report.sections) + bool(report.left_out)
            assert all(address.startswith(("data:", "file:")) for address in shown.requested())
            assert shown.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
            dark = shown.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) < 64")
            assert dark == (scheme == "dark")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_it_is_printed_in_light_colours_and_no_figure_crosses_a_page(full: Report) -> None:
    with browser() as shown:
        shown.open(Path(full.file), width=700, prefers_color_scheme="light")
        ink = "getComputedStyle(document.querySelector('.complete, .stopped')).color"
        light = shown.evaluate(ink)
        shown.open(Path(full.file), width=700, prefers_color_scheme="dark")
        assert shown.evaluate(ink) != light
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        shown.call("Emulation.setEmulatedMedia", media="print", features=dark)
        assert shown.evaluate(ink) == light
        assert shown.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page')") == "#fff"
        figures = "[...document.querySelectorAll('figure, pre, .mosaic, .bars, tr')]"
        assert shown.evaluate(f"{figures}.every(it => getComputedStyle(it).breakInside === 'avoid')")
