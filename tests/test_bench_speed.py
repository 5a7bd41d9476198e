"""python -m bench speed and report: what is timed, skipped, written and drawn."""

import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from bench_command import refusal, run
from torch import nn

from bench.arguments import UserError
from bench.speed import candidates, cases, command, measure, report, rows
from bench.speed.candidates import COPY, FUNCTION, LAYER, LAYERS, LINEAR, LSTM, SCAN, Gradients
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
    _, said = run("speed", *TINY, *small, "--out", out, status=1)
    assert "float32, scan forward: indrnn_scan: h is off by " in said
    found = {(row["what"], row["name"]): row for row in report.load(out)["rows"]}
    call = measured(CALL, sizes=(1, 1, 8))[FUNCTION]
    for row in (found[SCAN_FORWARD, SCAN], found[FORWARD, LAYER], call):
        assert row["wrong"].startswith("h is off by ")
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
    the page that it gives."""
    out = tmp_path_factory.mktemp("speed") / "speed-cpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "SIZES", SIZES)
        patch.setattr(cases, "MORE_STEPS", [(3, 40, 5)])
        patch.setattr(measure, "CALLS", 2)
        patch.setitem(LAYERS, "broken", lambda N: Broken(N, N))
        output, _ = run("speed", *TINY, "--out", out)
        page, _ = run("report", out)
    content = json.loads(out.read_text())
    return content, rows.by_case(content["rows"]), output, page


def test_a_run_measures_everything(result):
    content, found, output, _ = result
    assert content["complete"]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    for dtype in DTYPES:
        for sizes in SIZES:
            assert COPY in found[Case(sizes, dtype, SCAN_FORWARD)]
            for what in (FORWARD, TRAINING):
                assert set(found[Case(sizes, dtype, what)]) >= set(LAYERS)
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
    assert "  broken            RuntimeError: could not create a primitive\n" in output
    assert "`broken`, bfloat16, training step: RuntimeError: could not create a primitive" in page
    assert "| error / error |" in page


def test_the_report_shows_the_figures_of_the_json(result):
    _, found, _, page = result
    ours, linear = (found[(3, 70, 5), "float32", FORWARD][name]["ms"] for name in (LAYER, LINEAR))
    table = page[page.index("Forward, float32 / bfloat16;") :]
    line = next(line for line in table.splitlines() if line.startswith("| 3, 70, 5 |"))
    shown = [cell.split(" / ")[0].strip() for cell in line.split("|")]
    assert float(shown[2]) == pytest.approx(statistics.median(ours), rel=0.01)
    times = statistics.median(b / a for a, b in zip(ours, linear, strict=True))
    assert float(shown[3]) == pytest.approx(times, rel=0.01)


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


def test_an_error_of_ours_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(LAYERS, LAYER, lambda N: Broken(N, N))
    run("speed", *TINY, "--sizes", "2x5x3", "--out", tmp_path / "a.json", status=1)


def test_what_takes_too_long_is_skipped():
    """By the clock that it is called with, a call of anybody takes a second."""

    def clock(function):
        function()
        return 1.0

    found = measured(FORWARD, clock, limit=30)
    assert {name for name, row in found.items() if "ms" in row} == {LAYER, LINEAR}
    assert found[LSTM]["skipped"] == "a call takes more than 30 s"
    assert "ms" in measured(FORWARD, clock, limit=36)[LSTM], "70 time steps, of which 2 were tried"


def test_what_needs_too_much_memory_is_skipped(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1000)
    found = measured(TRAINING)
    assert set(found) >= set(LAYERS)
    assert all(row["skipped"].startswith("needs about") for row in found.values())


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
    assert by_name["breaks"]["error"] == "ValueError: "


def test_memory_is_what_autograd_keeps():
    """nn.Linear and IndRNN: the output; x and the parameters not at all."""
    data = Inputs.draw((3, 70, 8), torch.float32, "cpu")
    size = data.x.untyped_storage().nbytes()
    names = LAYER, LINEAR, LSTM
    held = {name: measure.held_bytes(Gradients(LAYERS[name](8), data)) for name in names}
    assert held[LINEAR] == held[LAYER] == size
    assert held[LSTM] > 4 * size


def test_the_charts_come_first_and_say_what_they_show(tmp_path):
    """Of made-up figures: each layer takes and holds its number times as much as `IndRNN`."""
    made = []
    for T, dtype in itertools.product((64, 1024, 8192), DTYPES):
        for times, name in enumerate([LAYER, LINEAR, LSTM], 1):
            results = {name: [0.0001 * T**2 * times] * 5}
            held = {name: times * 32 * T * 128 * DTYPES[dtype].itemsize}
            made += measure.rows_of(Case((32, T, 128), dtype, TRAINING), results, held)
    path = tmp_path / "a.json"
    content = report.load(ROOT / "bench" / "results" / "speed-cpu.json") | {"rows": made}
    path.write_text(json.dumps(content))
    page, _ = run("report", path)
    order = "At T = 8,192", "takes 3 (float32) and 3 (bfloat16) times", "holds 3 (", "| B, T, N |"
    assert sorted(order, key=page.index) == list(order)
    assert "In bfloat16 at T = 8,192, from the lowest line up: IndRNN 1, nn.Linear 2" in page
    assert "In float32: IndRNN 1, nn.Linear 2, nn.LSTM 3." in page
    assert "<details" not in page, "nothing else to show"
    for name, labels in (("time", [LSTM, "8,192", "1,000"]), ("memory", [f"{LSTM}: 3"])):
        picture = (tmp_path / f"a-{name}.svg").read_text()
        assert f"/a-{name}.svg)" in page
        for label in labels:
            assert re.search(rf"> ?{label}</text>", picture), label
        assert not re.search(r">[^<]*(\de[+-]?\d|\^)[^<]*</text>", picture), "no exponents"


@pytest.mark.parametrize("T", [64, 256])
def test_one_shape_gives_no_line(T, tmp_path):
    """Of those that differ in T, the chart has all, the table only some."""
    path = tmp_path / "a.json"
    content = report.load(ROOT / "bench" / "results" / "speed-cpu.json")
    made = measure.rows_of(Case((32, T, 128), "float32", TRAINING), {LAYER: [0.1] * 5}, {LAYER: 9})
    path.write_text(json.dumps(content | {"rows": made}))
    page, _ = run("report", path)
    assert ("| 32, 256, 128 |" in page) == (T == 256)
    assert {svg.name for svg in tmp_path.glob("*.svg")} == {"a-memory.svg"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.000123456, "0.000123"), (0.1, "0.1"), (9.996, "10"), (12.34, "12.3"), (1e6, "1,000,000")],
)
def test_numbers_have_no_exponents(value, shown):
    assert rows.number(value) == shown


def test_report_without_a_json_writes_readme_and_charts_again(tmp_path, monkeypatch):
    """The page with the committed figures, and the same bytes of both charts."""
    page, results = tmp_path / "README.md", tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    for path in report.committed():
        (results / path.name).write_bytes(path.read_bytes())
    committed = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, tail = committed.partition(report.BEGIN)
    tail = tail.partition(report.END)[2]
    page.write_text(f"{head}{report.BEGIN}\nstale\n{report.END}{tail}", encoding="utf-8")
    for name, value in (("ROOT", tmp_path), ("README", page), ("RESULTS", results)):
        monkeypatch.setattr(report, name, value)
    run("report")
    assert page.read_text(encoding="utf-8") == committed
    charts = {path.name: path.read_bytes() for path in results.glob("*.svg")}
    run("report")
    assert charts == {path.name: path.read_bytes() for path in results.glob("*.svg")}
    with pytest.raises(UserError, match="has no place for results"):
        report.insert(f"{report.END} and then {report.BEGIN}", {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"task": "adding"}', "is not of python -m bench speed"),
        ('{"benchmark": "speed"}', "is of another version of python -m bench speed"),
    ],
)
def test_a_wrong_json_is_refused(content, said, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert f"{path} {said}" in refusal("report", path)


def test_a_folder_that_is_missing_is_refused(tmp_path):
    path = tmp_path / "nothing" / "a.json"
    assert f"there is no folder {path.parent} for a.json" in refusal("speed", "--out", path)
