"""python -m bench speed and report: what is timed, skipped, written and drawn."""

import itertools
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from bench_command import refusal, run
from torch import nn

from bench.speed import candidates, cases, command, measure, report, rows
from bench.speed.candidates import COPY, FUNCTION, LAYER, LAYERS, LINEAR, LSTM, SCAN
from bench.speed.cases import CALL, DTYPES, FORWARD, SCAN_FORWARD, TRAINING, Case, Inputs
from fastindrnn import IndRNN

ROOT, CPU = Path(__file__).parent.parent, torch.device("cpu")
SIZES = [(3, 70, 5), (2, 1, 3)]
TINY = ["--device", "cpu", "--rounds", "5", "--limit", "1000"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of tiny calls wait for each other for long where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(what, clock=None, sizes=(3, 70, 8), limit=1000):
    """{name: row} of one case."""
    case, clock = Case(sizes, "float32", what), clock or measure.Clock(CPU)
    (found,) = measure.measure([case], CPU, clock, rounds=5, seconds=1, limit=limit)
    return {row["name"]: row for row in found}


class Wrong(IndRNN):
    def forward(self, x):
        return tuple(1.1 * part for part in super().forward(x))


def test_what_is_ours_and_wrong_is_not_timed(tmp_path, monkeypatch):
    for name in ("indrnn_scan", "indrnn"):
        right = getattr(candidates, name)

        def wrong(*args, right=right):
            return 1.1 * right(*args)[0]

        monkeypatch.setattr(candidates, name, wrong)
    monkeypatch.setitem(LAYERS, LAYER, lambda N: Wrong(N, N, batch_first=True))
    out, small = tmp_path / "a.json", ["--sizes", "2x5x3", "--dtypes", "float32"]
    output, said = run("speed", *TINY, *small, "--out", out, status=1)
    assert "float32, scan forward: indrnn_scan: Wrong: h is off by " in said
    assert " x" not in output, "no ratio to what has no time"
    found = {(row["what"], row["name"]): row for row in report.load(out)["rows"]}
    call = measured(CALL, sizes=(1, 1, 8))[FUNCTION]
    for row in (found[SCAN_FORWARD, SCAN], found[FORWARD, LAYER], call):
        assert row["error"].startswith("Wrong: h is off by ")
        assert "ms" not in row
    assert found[SCAN_FORWARD, COPY]["ms"]
    assert found[FORWARD, LINEAR]["ms"]


class Broken(nn.Linear):
    """Raises where it is trained."""

    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("could not create a primitive\nand more")
        return super().forward(x)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole run at tiny sizes with a layer that raises: its JSON, its rows, what it printed, and
    the tables that it gives."""
    out = tmp_path_factory.mktemp("speed") / "speed-cpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "SIZES", SIZES)
        patch.setattr(cases, "MORE_STEPS", [(3, 40, 5)])
        patch.setattr(measure, "SAMPLE", 2)
        patch.setitem(LAYERS, "broken", lambda N: Broken(N, N))
        output, _ = run("speed", *TINY, "--out", out)
        page, _ = run("report", out)
    content = json.loads(out.read_text())
    return content, rows.by_case(content["rows"]), output, page


def test_a_run_measures_everything(result):
    content, found, output, _ = result
    installed = candidates.installed()
    assert content["complete"]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    for dtype in DTYPES:
        for sizes in SIZES:
            assert COPY in found[Case(sizes, dtype, SCAN_FORWARD)]
            for what in (FORWARD, TRAINING):
                assert set(found[Case(sizes, dtype, what)]) == {"broken", *LAYERS, *installed}
        assert LAYER in found[Case((3, 40, 5), dtype, TRAINING)]
    assert len({case.what for case in found}) == 6
    for row in content["rows"]:
        if row["name"] != "broken" or row["what"] == FORWARD:
            assert len(row["ms"]) == 5
            assert min(row["ms"]) > 0
        assert ("bytes" in row) == (row["what"] == TRAINING and row["name"] != "broken")
    assert "(3, 70, 5), float32, training step\n  IndRNN " in output


def test_what_raises_is_a_row_and_the_run_goes_on(result):
    content, _, output, page = result
    raised = [r for r in content["rows"] if (r["name"], r["what"]) == ("broken", TRAINING)]
    assert len(raised) == 6, "two dtypes at three shapes"
    assert {row["error"] for row in raised} == {"RuntimeError: could not create a primitive"}
    assert re.search("  broken +RuntimeError: could not create a primitive\n", output)
    assert "`broken`, bfloat16, training step: RuntimeError: could not create a primitive" in page
    assert "| error / error |" in page


def test_the_tables_show_the_figures_of_the_json(result):
    """A time and a ratio of one line; the bytes of another."""
    _, found, _, page = result

    def cells(start, number):
        line = [line for line in page.splitlines() if line.startswith(start)][number]
        return [float(cell.split(" / ")[0].replace(",", "")) for cell in line.split("|")[3:5]]

    ours, linear = (found[(3, 70, 5), "float32", FORWARD][name]["ms"] for name in (LAYER, LINEAR))
    times = statistics.median(b / a for a, b in zip(ours, linear, strict=True))
    shown = cells("| forward | 3, 70, 5 |", 0)
    assert shown == pytest.approx([statistics.median(ours), times], rel=0.01)
    held = found[(3, 70, 5), "float32", TRAINING][LAYER]["bytes"]
    assert cells("| training step | 3, 70, 5 |", -1) == pytest.approx([held / 1e6, 1], rel=0.01)


def test_a_user_s_run_leaves_the_committed_results_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "everything", lambda *args: iter([]))
    run("speed", "--device", "cpu")
    (path,) = tmp_path.rglob("*.json")
    assert path.parent == tmp_path / "runs"
    assert not report.load(path)["rows"]
    assert "medians of" in run("report", path)[0], "on the terminal"


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch):
    def interrupted(args, device):
        yield measure.rows_of(Case((3, 70, 5), "float32", FORWARD), {LAYER: [0.1] * 5})
        raise KeyboardInterrupt

    out = tmp_path / "speed.json"
    monkeypatch.setattr(command, "everything", interrupted)
    run("speed", *TINY, "--out", out, status=130)
    content = report.load(out)
    assert not content["complete"]
    assert [row["ms"] for row in content["rows"]] == [[100] * 5]


def test_what_takes_too_long_is_skipped():
    """By the clock that it is called with, a call of anybody takes a second."""

    def clock(function):
        function()
        return 1.0

    found = measured(FORWARD, clock, limit=30)
    assert {name for name, row in found.items() if "ms" in row} == {LAYER, LINEAR}
    assert found[LSTM]["skipped"] == "a call takes more than 30 s"
    assert "ms" in measured(FORWARD, clock, limit=36)[LSTM], "70 time steps, of which 2 were tried"


def test_rounds_are_interleaved_and_ratios_are_within_them():
    called = []

    def function(name, seconds):
        def call():
            called.append(name)
            if name == "breaks" and called.count(name) == 3:
                raise ValueError
            return next(seconds)

        return call

    seconds = {"slow": iter([30, 10, 50, 10]), "fast": iter([3, 2, 5, 2]), "breaks": iter([1, 1])}
    functions = {name: function(name, own) for name, own in seconds.items()}
    found = measure.interleave(functions, 4, lambda function: function())
    assert called[:6] == ["slow", "fast", "breaks", "fast", "breaks", "slow"]
    assert isinstance(found["breaks"], ValueError)
    by_name = {r["name"]: r for r in measure.rows_of(Case((1, 1, 1), "float32", FORWARD), found)}
    assert by_name["slow"]["ms"] == [30000, 10000, 50000, 10000]
    assert rows.ratio(by_name, "slow", "fast") == 7.5, "of 10, 5, 10 and 5"
    assert rows.ratio(by_name, "slow", "breaks") is None


def test_memory_is_what_autograd_keeps():
    """nn.Linear and IndRNN: the output; x and the parameters not at all."""
    data = Inputs.draw((3, 70, 8), torch.float32, "cpu")
    size = data.x.untyped_storage().nbytes()
    names = LAYER, LINEAR, LSTM
    held = {name: measure.held_bytes(candidates.Gradients(LAYERS[name](8), data)) for name in names}
    assert held[LINEAR] == held[LAYER] == size
    assert held[LSTM] > 4 * size


@pytest.mark.parametrize("steps", [[64], [64, 1024, 8192]])
def test_the_charts_show_every_layer_and_no_exponents(steps, tmp_path):
    """Of made-up figures: each layer takes and holds its number times as much as `IndRNN`. One
    shape gives no line over T."""
    made = []
    for T, dtype in itertools.product(steps, DTYPES):
        for times, name in enumerate([LAYER, LINEAR, LSTM], 1):
            results = {name: [0.0001 * T**2 * times] * 5}
            held = {name: times * 32 * T * 128 * DTYPES[dtype].itemsize}
            made += measure.rows_of(Case((32, T, 128), dtype, TRAINING), results, held)
    path = tmp_path / "a.json"
    content = report.load(ROOT / "bench" / "results" / "speed-cpu.json") | {"rows": made}
    path.write_text(json.dumps(content))
    run("report", path)
    labels = {"memory": [f"{LSTM}: 3"]} | ({"time": [LSTM, "8,192", "1,000"]} if steps[1:] else {})
    assert {svg.name for svg in tmp_path.glob("*.svg")} == {f"a-{name}.svg" for name in labels}
    for name, shown in labels.items():
        picture = (tmp_path / f"a-{name}.svg").read_text()
        assert all(re.search(rf"> ?{label}</text>", picture) for label in shown)
        assert not re.search(r">[^<]*(\de[+-]?\d|\^)[^<]*</text>", picture), "no exponents"


def test_report_without_a_json_writes_both_pages_and_the_charts_as_committed(tmp_path, monkeypatch):
    """The same bytes, from pages without results."""
    pages = "README.md", "docs/speed.md"
    (tmp_path / "docs").mkdir()
    results = shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    for name in pages:
        text = (ROOT / name).read_text(encoding="utf-8")
        stale = report.replace_between(text, *report.MARKS, "stale")
        (tmp_path / name).write_text(stale, encoding="utf-8")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    run("report")
    charts = [f"bench/results/speed-cpu-{name}.svg" for name in ("time", "memory")]
    for name in pages:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name
    drawn = {name: (tmp_path / name).read_bytes() for name in charts}
    run("report")
    assert drawn == {name: (tmp_path / name).read_bytes() for name in charts}
    (tmp_path / "README.md").write_text("no marks")
    assert "the page has no place for results" in refusal("report")
