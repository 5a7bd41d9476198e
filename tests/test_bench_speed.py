"""python -m bench speed and report: what is checked, skipped, judged, written and drawn."""

import contextlib
import errno
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastindrnn import IndRNN

ROOT = Path(__file__).parent.parent
if "bench" not in sys.modules:  # the root on the path would offer kernels/ under a wrong name
    spec = importlib.machinery.ModuleSpec("bench", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "bench")]
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
budget, candidates, cases, checks, claims, command, growth, memory, report, tables, timing = (
    importlib.import_module(f"bench.speed.{name}")
    for name in (
        "budget",
        "candidates",
        "cases",
        "checks",
        "claims",
        "command",
        "growth",
        "memory",
        "report",
        "tables",
        "timing",
    )
)
Inputs = importlib.import_module("bench.speed.inputs").Inputs
environment = importlib.import_module("bench.environment")
main = importlib.import_module("bench.__main__").main
TINY = ["--device", "cpu", "--rounds", "2"]
# Nothing takes too long, however slow the machine is at that moment.
PATIENT = {"call": 1e9, "main": 1e9, "peer": 1e9}


@pytest.fixture(scope="module", autouse=True)
def patient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.BUDGETS, "cpu", budget.Budget(**PATIENT))
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON of a run at two tiny sizes, and what it printed."""
    out = tmp_path_factory.mktemp("speed") / "speed-cpu.json"
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(command, "QUICK_SIZES", [(3, 70, 5), (2, 1, 3)])
        patch.setattr(candidates, "COMPILED_STEPS", 0)  # compiling takes long
        main(["speed", *TINY, "--quick", "--out", str(out)])
    output.seek(0)
    return out, json.loads(out.read_text()), output.read()


def records_of(content, what, layers=1):
    return [r for r in content["records"] if (r["what"], r["layers"]) == (what, layers)]


def test_a_run_measures_everything(result):
    _, content, output = result
    assert content["complete"]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    assert content["float32_products"] == "highest"
    for record in content["records"]:
        for times in record["ms"].values():
            assert 0 < times["lower"] <= times["median"] <= times["upper"]
    for dtype in ("float32", "bfloat16"):
        for layers in (1, 6):
            found = [r for r in records_of(content, "forward", layers) if r["dtype"] == dtype]
            assert [list(r["sizes"].values()) for r in found] == [[3, 70, 5], [2, 1, 3]]
            for name in ("IndRNN", "nn.Linear", "nn.RNN relu", "nn.GRU", "nn.LSTM", "PyTorch loop"):
                assert all(name in r["ms"] for r in found), name
            assert all("copy" in r["ms"] for r in found) == (layers == 1)
    assert {sweep["variable"] for sweep in content["growth"]} == {"T", "B", "N"}
    (call,) = records_of(content, "one call")
    assert set(call["ratios"]["nn.Linear + relu"]) >= {"IndRNN", "IndRNN.step"}
    assert "skipped: compiled loop: torch.compile unrolls the loop" in output
    assert set(content["absent"]) == {"float32", "bfloat16"}


def test_a_ratio_is_that_of_the_times(result):
    """Within rounds, so that it may differ from the ratio of medians: not by more than all."""
    _, content, _ = result
    (record, *_) = records_of(content, "forward")
    times, ratio = record["ms"], record["ratios"]["nn.Linear"]["IndRNN"]
    assert times["IndRNN"]["lower"] / times["nn.Linear"]["upper"] <= ratio["upper"] * 1.01
    assert times["IndRNN"]["upper"] / times["nn.Linear"]["lower"] >= ratio["lower"] * 0.99


def test_the_report_is_drawn_from_the_json(result, tmp_path):
    out, content, _ = result
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nbehind\n")
    drawn = []
    for _ in range(2):
        assert main(["report", str(out), "--readme", str(readme)]) == 0
        plots = sorted(out.parent.glob("*.svg"))
        drawn.append([path.read_bytes() for path in plots])
    assert [path.name for path in plots] == [
        f"speed-cpu-{name}.svg" for name in ("bandwidth", "memory", "ratio", "time")
    ]
    assert drawn[0] == drawn[1]
    page = readme.read_text()
    assert page.startswith(f"before\n{report.BEGIN}\n**")
    assert page.endswith(f"{report.END}\nbehind\n")
    assert "old" not in page
    (forward, *_) = records_of(content, "forward")
    median = forward["ms"]["IndRNN"]["median"]
    row = next(line for line in page.splitlines() if line.startswith("| 3, 70, 5 |"))
    assert float(row.split("|")[2]) == pytest.approx(median, rel=0.01)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"task": "adding"}', "is not of python -m bench speed"),
        ('{"benchmark": "speed"}', "of another version of python -m bench speed"),
    ],
)
def test_a_wrong_json_is_refused(content, word, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Exception, match=word):
        report.load(path)


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.END} and then {report.BEGIN}")
    with pytest.raises(Exception, match="has no place for the table"):
        report.insert(readme, {})


def test_readme_shows_the_committed_figures():
    """`python -m bench report` has nothing to change."""
    try:
        _, shown, _ = report.split(ROOT / "README.md")
    except importlib.import_module("bench.arguments").UserError:
        pytest.skip("README.md has no place for the table yet")
    contents = {path: report.load(path) for path in report.committed()}
    assert contents, "nothing is committed"
    assert shown == f"\n{report.section(contents)}\n"


CASE = cases.Case((3, 70, 5), "float32", cases.FORWARD, 1)


def bench(**limits):
    return tables.Bench("cpu", 2, budget.Budget(**PATIENT | limits))


def wrong_scan(what):
    right = checks.indrnn_scan

    def scan(a, u):
        h, h_n = right(a, u if what == "h" else u.detach() + 0.99 * (u - u.detach()))
        if what == "grad_a":
            h = h + 0.01 * (h - h.detach())
        if what == "one step":
            h = torch.cat([h[:, :-1], h[:, -1:] * 1.001], 1)
        return (h * 1.001 if what == "h" else h), h_n

    return scan


@pytest.mark.parametrize("steps", [30, 700])  # compared as one, and in windows
@pytest.mark.parametrize(
    ("wrong", "said"), [("h", "h"), ("one step", "h"), ("grad_a", "gradient of a"), ("u", "of u")]
)
def test_nothing_is_timed_where_the_recurrence_is_wrong(wrong, said, steps, monkeypatch):
    inputs = Inputs.draw((2, steps, 8), torch.float32, "cpu")
    checks.check_scan(inputs)
    monkeypatch.setattr(checks, "indrnn_scan", wrong_scan(wrong))
    with pytest.raises(checks.Wrong, match=f"scan, .*{said} is wrong: off by .*; not timed"):
        checks.check_scan(inputs)


class WrongLayers(IndRNN):
    """Right but for one thing."""

    wrong = None

    def forward(self, x):
        h, h_n = super().forward(x)
        if self.wrong == "h":
            return torch.cat([h[:, :-1], h[:, -1:] * 2], 1), h_n
        parameter = dict(self.named_parameters(), x=x)[self.wrong]
        extra = parameter.sum() * h.detach().mean()
        return h + (extra - extra.detach()), h_n


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("wrong", ["h", "x", "weight_ih_l0", "bias_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_timed_where_a_layer_is_wrong(layers, wrong, dtype):
    torch.manual_seed(0)
    inputs = Inputs.draw((2, 90, 8), dtype, "cpu")
    rnn = WrongLayers(8, 8, layers, batch_first=True, dtype=dtype)
    right = IndRNN(8, 8, layers, batch_first=True, dtype=dtype)
    right.load_state_dict(rnn.state_dict())
    checks.check_layers(right, inputs, training=True)
    rnn.wrong = wrong
    with pytest.raises(checks.Wrong, match=f"layers x {layers}, .* is wrong"):
        checks.check_layers(rnn, inputs, training=True)


def test_another_implementation_is_compared_with_ours(monkeypatch):
    monkeypatch.setattr(candidates, "loop", lambda a, u: torch.relu(a + 0.5 * u))
    inputs = Inputs.draw(CASE.sizes, torch.float32, "cpu")
    with pytest.raises(checks.Wrong, match="PyTorch loop is wrong"):
        bench().measure(CASE, inputs, ("IndRNN", "PyTorch loop"))


@pytest.mark.triton
def test_the_loop_and_the_serial_kernel_compute_an_indrnn():
    """In Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = Inputs.draw((2, 9, 5), torch.float32, device)
    rnn = IndRNN(5, 5, 2, batch_first=True, device=device)
    functions = {
        "loop": lambda x, weight, bias, u: candidates.loop(
            nn.functional.linear(x, weight, bias), u
        ),
        "serial": candidates.SerialLayer.apply,
        "scan": lambda x, weight, bias, u: candidates.SerialScan.apply(
            nn.functional.linear(x, weight, bias), u
        ),
    }
    step = candidates.bind_layers(lambda: rnn, True)(inputs)
    expected, expected_grads = step()
    parameters = [id(leaf) for leaf in step.leaves[1:]]
    for name, function in functions.items():
        module = candidates.ByLayer(rnn, function)
        step = candidates.bind_layers(lambda module=module: module, True)(inputs)
        assert [id(leaf) for leaf in step.leaves[1:]] == parameters
        h, grads = step()
        torch.testing.assert_close(h, expected, msg=name)
        torch.testing.assert_close(grads, expected_grads, msg=name)


def test_what_would_take_too_long_is_skipped():
    """Also where a part of it is known to."""
    small = bench(call=1e-9)
    sizes = (2, 64, 4)
    inputs = Inputs.draw(sizes, torch.float32, "cpu")
    wanted = "IndRNN", "nn.Linear", "nn.GRU"
    forward = small.measure(cases.Case(sizes, "float32", cases.FORWARD, 1), inputs, wanted)
    assert set(forward["ms"]) == {"IndRNN", "nn.Linear"}
    assert re.fullmatch(r"would take about \S+ s a call", forward["skipped"]["nn.GRU"])
    for case in (
        cases.Case(sizes, "float32", cases.TRAINING, 1),
        cases.Case(sizes, "float32", cases.FORWARD, 6),
    ):
        record = small.measure(case, inputs, wanted)
        assert record["skipped"]["nn.GRU"].startswith("would take at least")


def test_a_prediction_is_a_line_through_short_calls():
    class Fake:
        def __init__(self):
            self.called = []

        def bind(self, inputs):
            return inputs.x.shape[1]

    inputs = Inputs.draw((1, 4000, 2), torch.float32, "cpu")
    seconds = budget.predict(Fake(), inputs, lambda steps: 0.01 + 0.001 * steps, 20)
    assert seconds == pytest.approx(0.01 + 0.001 * 4000)
    seconds = budget.predict(Fake(), inputs, lambda steps: 2.0 * steps, 20)
    assert seconds == pytest.approx(8000)


def test_what_would_need_too_much_memory_is_skipped(monkeypatch):
    free = 4 * Inputs.draw(CASE.sizes, torch.float32, "cpu").bytes / budget.SHARE
    monkeypatch.setattr(budget, "free_bytes", lambda device: free)
    inputs = bench().draw(CASE.sizes, "float32")
    record = bench().measure(CASE, inputs, ("IndRNN", "nn.LSTM"))
    assert set(record["ms"]) == {"IndRNN"}
    assert record["skipped"]["nn.LSTM"].startswith("would need about")
    monkeypatch.setattr(budget, "free_bytes", lambda device: free / 2)
    with pytest.raises(budget.Skipped, match="would need about"):
        bench().draw(CASE.sizes, "float32")
    record = bench().measure(CASE, inputs, ("IndRNN", "nn.LSTM"))
    assert not record["ms"]
    assert set(record["skipped"]) == {"IndRNN", "nn.LSTM"}


def test_memory_is_what_autograd_keeps():
    """nn.Linear: its output; ours: nothing but that in each layer; x and parameters not at all."""
    training = cases.Case((3, 70, 8), "float32", cases.TRAINING, 2)
    inputs = Inputs.draw(training.sizes, torch.float32, "cpu")
    held = bench().measure(training, inputs, ("IndRNN", "nn.Linear", "nn.LSTM"))["memory_bytes"]
    assert held["nn.Linear"] == 2 * inputs.bytes
    assert held["IndRNN"] == 2 * inputs.bytes
    assert held["nn.LSTM"] > 4 * inputs.bytes


@pytest.mark.parametrize("slow", [("IndRNN",), ("IndRNN", "PyTorch loop")])
def test_what_is_slow_is_called_once_and_watched_then(slow, monkeypatch):
    expected = tables.Bench.expected

    def expect(self, case, name, *rest):
        return 10.0 if name in slow else expected(self, case, name, *rest)

    monkeypatch.setattr(tables.Bench, "expected", expect)
    for what in (cases.FORWARD, cases.TRAINING):
        case = cases.Case((3, 70, 8), "float32", what, 1)
        inputs = Inputs.draw(case.sizes, torch.float32, "cpu")
        small = bench(main=0.1, peer=0.1)
        record = small.measure(case, inputs, ("IndRNN", "PyTorch loop"))
        assert [record["ms"][name]["samples"] for name in slow] == [1] * len(slow)
    assert record["memory_bytes"]["IndRNN"] == inputs.bytes


def test_an_error_of_others_is_a_word_and_ours_is_an_error(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel\nand more")

    inputs = Inputs.draw(CASE.sizes, torch.float32, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(nn.GRU, "forward", broken)
        record = bench().measure(CASE, inputs, ("IndRNN", "nn.GRU"))
    assert record["skipped"] == {"nn.GRU": "RuntimeError: no kernel"}
    monkeypatch.setattr(IndRNN, "forward", broken)
    with pytest.raises(RuntimeError, match="no kernel"):
        bench().measure(CASE, inputs, ("IndRNN", "nn.GRU"))


def test_rounds_are_interleaved_and_ratios_are_within_them():
    called = []
    seconds = {"slow": iter(range(100, 200, 10)), "fast": iter(range(1, 9))}

    def clock(function):
        called.append(function())
        return next(seconds[called[-1]])

    functions = {name: lambda name=name: name for name in seconds}
    strides = {"slow": timing.stride(10, 8, 25), "fast": timing.stride(1, 8, 25)}
    assert strides == {"slow": 4, "fast": 1}
    assert timing.stride(1000, 8, 25) == 8
    times = timing.measure(functions, 8, clock, strides)
    assert times["slow"] == [100, None, None, None, 110, None, None, None]
    assert times["fast"] == list(range(1, 9))
    assert called[:4] == ["slow", "fast", "fast", "fast"]
    assert timing.ratio(times["slow"], times["fast"]).median == (100 / 1 + 110 / 5) / 2
    assert timing.times(times["slow"]).samples == 2


def judged(value, **bound):
    claim = claims.Claim(CASE.sizes, "float32", 1, cases.FORWARD, "IndRNN", "nn.Linear", **bound)
    ratios = {} if value is None else {"nn.Linear": {"IndRNN": {"median": value}}}
    sizes = dict(zip("BTN", CASE.sizes, strict=True))
    record = {"sizes": sizes, "dtype": "float32", "layers": 1, "what": cases.FORWARD}
    return claim.judge([record | {"ratios": ratios, "skipped": {"IndRNN": "no memory"}}])


def test_a_claim_is_judged_by_the_median():
    assert judged(1.2, at_most=1.25)["holds"] is True
    assert judged(1.3, at_most=1.25)["holds"] is False
    assert judged(5.0, at_least=5)["holds"] is True
    assert judged(2.0, at_least=5)["holds"] is False
    assert judged(0.5, at_least=0.7, scale=1.5)["holds"] is True
    assert judged(None, at_most=1)["skipped"] == "no memory"
    assert judged(None, at_most=1)["holds"] is None
    assert claims.judge("cpu", []) == []


@pytest.mark.parametrize(("at_most", "status", "word"), [(1e-9, 1, "MISSED"), (1e9, 0, "holds")])
def test_the_exit_status_says_whether_a_bound_was_missed(
    at_most, status, word, monkeypatch, capsys
):
    claim = claims.Claim(
        (2, 5, 3), "float32", 0, cases.SCAN_FORWARD, "indrnn_scan", "copy", at_most
    )
    monkeypatch.setattr(claims, "CPU", [claim])
    monkeypatch.setattr(command, "cases_of", lambda *args: cases.cases_of(*args, depths=()))
    assert main(["speed", *TINY, "--sizes", "2x5x3", "--dtypes", "float32"]) == status
    assert word in capsys.readouterr().out


def test_every_claim_is_about_something_that_is_measured():
    measured = {
        (size, dtype, layers, what)
        for size in [*cases.SIZES, *cases.SCAN_SIZES]
        for dtype in cases.DTYPES
        for each in cases.cases_of(size, dtype)
        for layers, what in [(each.layers, each.what)]
    }
    for claim in [*claims.CPU, *claims.GPU]:
        if claim.what not in (claims.CALL, claims.THREADS):
            assert (claim.sizes, claim.dtype, claim.layers, claim.what) in measured, claim


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch):
    out = tmp_path / "speed.json"

    def interrupted(bench, args, content):
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(command.STEPS, "growth", interrupted)
    monkeypatch.setattr(command, "cases_of", lambda *args: cases.cases_of(*args, depths=()))
    words = ["--sizes", "2x5x3", "--parts", "cases", "growth", "calls", "--out", str(out)]
    assert main(["speed", *TINY, *words]) == 130
    content = json.loads(out.read_text())
    assert not content["complete"]
    assert [record["what"] for record in content["records"]] == [
        cases.SCAN_FORWARD,
        cases.SCAN_BACKWARD,
    ] * 2


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path, done = tmp_path / "report.json", []
    path.write_text("old")

    def sync(file):
        done.append((os.fstat(file).st_size, path.read_text()))

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    environment.write_json(path, ["new"])
    assert done == [(path.stat().st_size, "old")]
    assert json.loads(path.read_text()) == ["new"]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match=r"json cannot be written: No space left.*; the one from b"):
        environment.write_json(path, ["newer"])
    assert json.loads(path.read_text()) == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_slopes_are_the_exponents_of_powers():
    assert growth.slope([(value, 3 * value**1.5) for value in (1, 2, 4, 8)]) == 1.5
    assert growth.slope([(1, 1), (2, 2)]) is None
    assert cases.Sweep("B", (0, 5, 6), (1, 2), "float32").sizes() == [(1, 5, 6), (2, 5, 6)]
