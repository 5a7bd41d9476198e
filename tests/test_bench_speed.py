"""python -m bench speed: what is checked, timed, skipped, written and drawn."""

import json
import statistics

import pytest
import torch
from bench_command import run
from torch import nn

from bench.speed import candidates, cases, checks, command, measure, report
from bench.speed.candidates import COPY, LAYER, LAYERS, LINEAR, LSTM, PLAIN, SCAN, TrainingStep
from bench.speed.cases import CALL, FORWARD, SCAN_FORWARD, TRAINING, Case, Inputs
from fastindrnn import IndRNN

CPU = torch.device("cpu")
SIZES = [(3, 70, 5), (2, 1, 3)]
TINY = ["--device", "cpu", "--rounds", "5", "--limit", "1000"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of tiny calls wait for each other for long where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Broken(nn.Linear):
    """Raises where it is trained."""

    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("could not create a primitive\nand more")
        return super().forward(x)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole run at tiny sizes with a layer that raises: its JSON, what it wrote and printed."""
    out = tmp_path_factory.mktemp("speed") / "speed-cpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "SIZES", SIZES)
        patch.setattr(cases, "MORE_STEPS", [(3, 40, 5)])
        patch.setattr(measure, "CALLS", 2)
        patch.setitem(LAYERS, "broken", lambda N: Broken(N, N))
        output, _ = run("speed", *TINY, "--out", out)
        page = out.with_name("README.md")
        page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nbehind\n")
        drawn = []
        for _ in range(2):
            run("report", out, "--readme", page)
            drawn.append([path.read_bytes() for path in sorted(out.parent.glob("*.svg"))])
    assert drawn[0] == drawn[1], "the same JSON gives the same bytes"
    return out, json.loads(out.read_text()), output


def test_a_run_measures_everything(result):
    _, content, output = result
    assert content["complete"]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    found = report.by_case(content["rows"])
    for dtype in cases.DTYPES:
        for sizes in SIZES:
            assert COPY in found[Case(sizes, dtype, SCAN_FORWARD)]
            for what in (FORWARD, TRAINING):
                assert set(found[Case(sizes, dtype, what)]) >= set(LAYERS)
        assert LAYER in found[Case((3, 40, 5), dtype, TRAINING)]
    assert {case.what for case in found} == set(cases.MEASURED)
    for row in content["rows"]:
        if row["name"] != "broken" or row["what"] == FORWARD:
            assert len(row["ms"]) == 5
            assert min(row["ms"]) > 0
        assert ("bytes" in row) == (row["what"] == TRAINING and row["name"] != "broken")
    assert "(3, 70, 5), float32, training step\n  IndRNN " in output


def test_what_raises_is_a_row_and_the_run_goes_on(result):
    out, content, output = result
    rows = [r for r in content["rows"] if (r["name"], r["what"]) == ("broken", TRAINING)]
    assert len(rows) == 6, "two dtypes at three shapes"
    assert {row["error"] for row in rows} == {"RuntimeError: could not create a primitive"}
    assert "  broken            RuntimeError: could not create a primitive\n" in output
    page = out.with_name("README.md").read_text()
    assert "`broken`, bfloat16, training step: RuntimeError: could not create a primitive" in page
    assert "| error / error |" in page


def test_the_report_shows_the_figures_of_the_json(result):
    out, content, _ = result
    page = out.with_name("README.md").read_text()
    assert page.startswith(f"before\n{report.BEGIN}\n**")
    assert page.endswith(f"{report.END}\nbehind\n")
    assert "stale" not in page
    rows = report.by_case(content["rows"])[Case((3, 70, 5), "float32", FORWARD)]
    ours, linear = (rows[name]["ms"] for name in (LAYER, LINEAR))
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


def wrong_scan(what):
    """`indrnn_scan` with a mistake in one thing."""
    right = checks.indrnn_scan

    def scan(a, u):
        h, h_n = right(a, u if what == "h" else u.detach() + 0.99 * (u - u.detach()))
        if what == "gradient of a":
            h = h + 0.01 * (h - h.detach())
        if what == "one step":
            h = torch.cat([h[:, :-1], h[:, -1:] * 1.001], 1)
        return (h * 1.001 if what == "h" else h), h_n

    return scan


@pytest.mark.parametrize("steps", [30, 700])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [("h", "h"), ("one step", "h"), ("gradient of a", "of a"), ("gradient of u", "of u")],
)
def test_a_wrong_recurrence_is_found(wrong, said, steps, monkeypatch):
    inputs = Inputs.draw((2, steps, 8), torch.float32, "cpu")
    checks.check_scan(inputs, training=True)
    monkeypatch.setattr(checks, "indrnn_scan", wrong_scan(wrong))
    with pytest.raises(checks.Wrong, match=rf"{said} is off by .*, allowed .*: not timed"):
        checks.check_scan(inputs, training=True)


class WrongLayer(IndRNN):
    """Right but for one thing."""

    wrong = None

    def forward(self, x):
        h, h_n = super().forward(x)
        if self.wrong == "h":
            return torch.cat([h[:, :-1], h[:, -1:] * 2], 1), h_n
        parameter = dict(self.named_parameters(), x=x)[self.wrong]
        extra = parameter.sum() * h.detach().mean()
        return h + (extra - extra.detach()), h_n


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("h", "h"),
        ("x", "gradient of x"),
        ("weight_ih_l0", "gradient of W"),
        ("bias_ih_l0", "gradient of b"),
        ("weight_hh_l0", "gradient of u"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_layer_is_found(wrong, said, dtype):
    torch.manual_seed(0)
    inputs = Inputs.draw((2, 190, 8), dtype, "cpu")
    rnn = WrongLayer(8, 8, batch_first=True, dtype=dtype)
    checks.check_layer(IndRNN(8, 8, batch_first=True, dtype=dtype), inputs, training=True)
    rnn.wrong = wrong
    with pytest.raises(checks.Wrong, match=f"^{said} is off by"):
        checks.check_layer(rnn, inputs, training=True)


def measured(what, clock=None, sizes=(3, 70, 8), limit=1000):
    """{name: row} of one case."""
    case, clock = Case(sizes, "float32", what), clock or measure.Clock(CPU)
    (rows,) = measure.measure([case], CPU, clock, rounds=5, seconds=1, limit=limit)
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize(
    ("what", "ours", "other", "sizes"),
    [
        (SCAN_FORWARD, SCAN, COPY, (3, 70, 8)),
        (FORWARD, LAYER, LINEAR, (3, 70, 8)),
        (CALL, LAYER, PLAIN, (1, 1, 8)),
    ],
)
def test_what_is_ours_and_wrong_is_not_timed(what, ours, other, sizes, tmp_path, monkeypatch):
    def make(N):
        return WrongLayer(N, N, batch_first=True)

    assert measured(what, sizes=sizes)[ours]["ms"]
    monkeypatch.setattr(checks, "indrnn_scan", wrong_scan("h"))
    monkeypatch.setattr(WrongLayer, "wrong", "h")
    monkeypatch.setitem(LAYERS, LAYER, make)
    monkeypatch.setitem(candidates.ONE_STEP, LAYER, (make, candidates.ONE_STEP[LAYER][1]))
    rows = measured(what, sizes=sizes)
    assert rows[ours]["wrong"].startswith("h is off by ")
    assert "ms" not in rows[ours]
    assert rows[other]["ms"]
    run("speed", *TINY, "--sizes", "2x5x3", "--out", tmp_path / "a.json", status=1)


def test_an_error_of_ours_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(LAYERS, LAYER, lambda N: Broken(N, N))
    run("speed", *TINY, "--sizes", "2x5x3", "--out", tmp_path / "a.json", status=1)


def test_what_takes_too_long_is_skipped():
    """By the clock that it is called with, a call of anybody takes a second."""

    def clock(function):
        function()
        return 1.0

    rows = measured(FORWARD, clock, limit=30)
    timed = {name for name, row in rows.items() if "ms" in row}
    assert timed == {LAYER, LINEAR}
    assert rows[LSTM]["skipped"] == "a call takes more than 30 s"
    assert "ms" in measured(FORWARD, clock, limit=36)[LSTM], "70 time steps, of which 2 were tried"


def test_what_needs_too_much_memory_is_skipped(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1000)
    rows = measured(TRAINING)
    assert set(rows) >= set(LAYERS)
    assert all(row["skipped"].startswith("needs about") for row in rows.values())


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
    rows = {r["name"]: r for r in measure.rows_of(Case((1, 1, 1), "float32", FORWARD), found)}
    assert rows["slow"]["ms"] == [30000, 10000, 50000, 10000]
    assert report.ratio(rows, "slow", "fast") == 7.5, "of 10, 5, 10 and 5"
    assert report.ratio(rows, "slow", "breaks") is None
    assert rows["breaks"]["error"] == "ValueError: "


def test_memory_is_what_autograd_keeps():
    """nn.Linear and IndRNN: the output; x and the parameters not at all."""
    inputs = Inputs.draw((3, 70, 8), torch.float32, "cpu")
    size = inputs.x.untyped_storage().nbytes()
    held = {
        name: measure.held_bytes(TrainingStep(LAYERS[name](8), inputs))
        for name in (LAYER, LINEAR, LSTM)
    }
    assert held[LINEAR] == held[LAYER] == size
    assert held[LSTM] > 4 * size
