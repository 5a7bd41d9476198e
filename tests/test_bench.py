"""The benchmarks as a user starts them: python -m bench ..., from the root of the checkout."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCH = [sys.executable, "-m", "bench"]
SMALL = ["--length", "20", "--hidden", "8", "--batch", "4", "--log-every", "10", "--device", "cpu"]


def bench(*words, status=0):
    run = subprocess.run([*BENCH, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == status, run.stdout + run.stderr
    return run


def in_bench(code, *words):
    """Runs code in the root of the checkout, to import bench; returns the JSON that it prints."""
    command = [sys.executable, "-c", code, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a small run of all three networks that made all of its steps."""
    folder = tmp_path_factory.mktemp("adding") / "run"
    run = bench(
        "adding", *SMALL, "--steps", 120, "--baselines", "--baseline-steps", 30, "--out", folder
    )
    return folder, run.stdout


def test_adding_writes_report_plot_and_lines(finished):
    folder, output = finished
    report = json.loads((folder / "report.json").read_text())
    assert list(report["models"]) == ["IndRNN", "LSTM", "IRNN"]
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert report["settings"]["length"] == 20
    losses = checkpoint(folder)["learners"]["IndRNN"]["losses"]
    result = report["models"]["IndRNN"]
    assert result["steps"] == len(losses) == 120
    assert result["curve"] == [[100, pytest.approx(sum(losses[:100]) / 100)]]
    assert result["running_mse"] == pytest.approx(sum(losses[20:]) / 100)
    assert result["seconds"] > 119 * result["median_step_seconds"] / 2 > 0
    assert report["models"]["LSTM"]["steps"] == 30
    assert (folder / "curves.png").read_bytes()[1:4] == b"PNG"
    assert re.search(r"IndRNN +step +110 +MSE \d\.\d+ ", output)


def test_adding_trains_every_network_on_the_same_data(finished):
    folder, _ = finished
    states = checkpoint(folder)["learners"]
    assert torch.equal(states["LSTM"]["generator"], states["IRNN"]["generator"])
    assert not torch.equal(states["LSTM"]["generator"], states["IndRNN"]["generator"])


def test_adding_stops_at_the_target(tmp_path):
    bench("adding", *SMALL, "--target", 100, "--steps", 500, "--out", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "report.json").read_text())["models"]["IndRNN"]
    assert (result["outcome"], result["steps"], result["steps_to_target"]) == (
        "target reached",
        100,
        100,
    )


INTERRUPTED = """
import os, signal, sys
from bench.__main__ import main
from bench.tasks import training

line = training.progress_line

def interrupt(learner):
    if learner.step == 20:
        assert main(["adding", "--out", sys.argv[-1]]) == 2
        os.kill(os.getpid(), signal.SIGINT)
    return line(learner)

training.progress_line = interrupt
sys.exit(main())
"""


def test_an_interrupted_run_ends_as_if_it_never_had_been(tmp_path):
    """Ctrl-C, resume, and compare every loss and number of the state with a run in one go. While
    it runs, another run does not get its folder."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    options = [
        *SMALL,
        "--keep-going",
        "--decay-every",
        "25",
    ]  # the learning rate changes in between
    command = [sys.executable, "-c", INTERRUPTED, "adding", *options, "--out", str(stopped)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 130, run.stderr
    assert f"error: {stopped} is in use by another run\n" in run.stderr
    assert f"python -m bench adding --resume {stopped}" in run.stdout
    assert {path.name for path in stopped.iterdir()} == {
        "checkpoint.pt",
        "report.json",
        "curves.png",
    }
    begun = checkpoint(stopped)["learners"]["IndRNN"]
    assert begun["outcome"] == "interrupted"
    assert len(begun["losses"]) == 20
    steps = 57

    bench("adding", "--resume", stopped, "--steps", steps)
    bench("adding", *options, "--steps", steps, "--out", whole)
    resumed, expected = (checkpoint(folder)["learners"]["IndRNN"] for folder in (stopped, whole))
    assert len(expected["losses"]) == steps
    assert resumed["losses"] == expected["losses"]
    assert torch.equal(resumed["generator"], expected["generator"])
    for name, value in expected["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    for number, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(resumed["optimizer"]["state"][number][name], value), (number, name)


def test_a_full_disk_gets_one_line_and_the_old_checkpoint_stays_whole(finished, tmp_path):
    """A limit on the size of files in the place of a full disk: at the first save of a run, and
    when its checkpoint has grown."""
    pytest.importorskip("resource", reason="for Linux and macOS")
    new, old = tmp_path / "new", tmp_path / "old"
    shutil.copytree(finished[0], old)
    before = files(tmp_path)
    code = """
import contextlib, io, json, resource, sys
from bench.__main__ import main
answers = []
for limit, *words in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said, unread = io.StringIO(), io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(unread):
        answers.append([main(["adding", *words]), said.getvalue()])
print(json.dumps(answers))
"""
    limit = (old / "checkpoint.pt").stat().st_size + 1000
    runs = [
        [1000, "--out", str(new), *SMALL, "--steps", "20"],
        [limit, "--resume", str(old), "--steps", "400", "--keep-going"],
    ]
    ends = ["", "; the one from before is whole"]
    for folder, end, (status, said) in zip(
        (new, old), ends, in_bench(code, json.dumps(runs)), strict=True
    ):
        assert status == 2
        (line,) = [line for line in said.splitlines() if "step/s" not in line]
        path = folder / "checkpoint.pt"
        assert (
            line == f"python -m bench adding: error: {path} cannot be written: File too large{end}"
        )
    assert files(tmp_path) == before


def test_adding_data_are_exact():
    """One mark in each half, numbers in [0, 1), the answer the sum of the marked ones."""
    code = """
import json, torch
from bench.tasks.adding import make_batch
generator = torch.Generator().manual_seed(1)
seen = {length: set() for length in (2, 3, 9)}
for length in seen:
    for _ in range(200):
        inputs, answers = make_batch(5, length, generator)
        numbers, marks = inputs.unbind(-1)
        assert inputs.shape == (5, length, 2) and answers.shape == (5, 1)
        assert ((numbers >= 0) & (numbers < 1)).all() and ((marks == 0) | (marks == 1)).all()
        assert (marks[:, :length // 2].sum(1) == 1).all()
        assert (marks[:, length // 2:].sum(1) == 1).all()
        torch.testing.assert_close((numbers * marks).sum(1, keepdim=True), answers)
        seen[length] |= set(marks.nonzero()[:, 1].tolist())
print(json.dumps({length: sorted(places) for length, places in seen.items()}))
"""
    assert in_bench(code) == {str(length): list(range(length)) for length in (2, 3, 9)}


WRONG = {  # what is asked: what the one line says
    "adding --length 1": "argument --length: '1' must be a whole number, at least 2",
    "adding --length ten": "argument --length: 'ten' must be a whole number, at least 2",
    "adding --steps 0": "argument --steps: '0' must be a whole number, at least 1",
    "adding --batch -4": "argument --batch: '-4' must be a whole number, at least 1",
    "adding --hidden 1.5": "argument --hidden: '1.5' must be a whole number, at least 1",
    "adding --layers 0": "argument --layers: '0' must be a whole number, at least 1",
    "adding --lr nan": "argument --lr: 'nan' must be a finite number above 0",
    "adding --lr -1": "argument --lr: '-1' must be a finite number above 0",
    "adding --target 0": "argument --target: '0' must be a finite number above 0",
    "adding --device nowhere": "argument --device: 'nowhere' cannot be used: ",
    "adding --device cuda:99": "argument --device: 'cuda:99' cannot be used: ",
    "adding --device meta": "argument --device: 'meta' cannot be used: ",
    "adding --resume {tmp}/nothing": "there is no checkpoint {tmp}/nothing/checkpoint.pt",
    "adding --resume {tmp}/torn": "{tmp}/torn/checkpoint.pt is not a checkpoint that can be read",
    "adding --resume {tmp}/other": "{tmp}/other/checkpoint.pt is not a checkpoint of this version",
    "adding --resume {tmp}/module": "it holds more than tensors and plain values",
    "adding --resume {tmp}/busy": "{tmp}/busy is in use by another run",
    "adding --out {tmp}/busy": "{tmp}/busy is in use by another run",
    "adding --resume {run} --length 21": "--length 21: the run to resume has 20",
    "adding --resume {run} --out {tmp}/new": "argument --out: not allowed with argument --resume",
    "adding --out {run}": "{run} already holds a run; --resume {run} goes on with it",
    "adding --out {run}/report.json": "cannot make the folder {run}/report.json: ",
    "adding --len 10": "unrecognized arguments: --len 10",
    "speed --sizes 3x4": "argument --sizes: '3x4' must be BxTxN, as in 32x1000x128",
    "speed --sizes 3x0x4": "argument --sizes: '3x0x4' must be BxTxN, as in 32x1000x128",
    "speed --rounds 4": "argument --rounds: '4' must be a whole number, at least 5",
    "speed --limit 0": "argument --limit: '0' must be a finite number above 0",
    "speed --dtypes float8": "argument --dtypes: invalid choice: 'float8'",
    "speed --out {tmp}/nothing/a.json": "there is no folder {tmp}/nothing for a.json",
    "report {tmp}/nothing.json": "{tmp}/nothing.json cannot be read: ",
    "report {run}/report.json": "{run}/report.json is not of python -m bench speed",
    "fly": "argument COMMAND: invalid choice: 'fly'",
    "": "the following arguments are required: COMMAND",
}


def put(value, *keys):
    """An edit of a checkpoint: the value at the end of these keys."""

    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def remove(*keys):
    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


IN = "learners", "IndRNN"
EDITED = {  # what was done to a checkpoint, and what the one line says
    "no learners": (remove("learners"), "has been changed: learners is not a dict"),
    "a list of learners": (put([1], "learners"), "has been changed: learners is not a dict"),
    "no settings": (remove("settings"), "has been changed: settings is not a dict"),
    "no length": (remove("settings", "length"), "settings with a wrong length: None"),
    "a length in words": (put("ten", "settings", "length"), "with a wrong length: 'ten'"),
    "a length in quotes": (put("20", "settings", "length"), "with a wrong length: '20'"),
    "a negative batch": (put(-4, "settings", "batch"), "settings with a wrong batch: -4"),
    "a rate of nan": (put(float("nan"), "settings", "lr"), "settings with a wrong lr: nan"),
    "a flag of 2": (put(2, "settings", "keep_going"), "with a wrong keep_going: 2"),
    "a device of 5": (put(5, "settings", "device"), "settings with a wrong device: 5"),
    "another learner": (lambda c: c.update(learners={"GRU": 1}), "fit the model: it lacks IndRNN"),
    "a learner of 1": (put(1, *IN), "does not fit the model: "),
    "no losses": (remove(*IN, "losses"), "does not fit the model: it lacks 'losses'"),
    "losses in words": (put(["a"], *IN, "losses"), "losses of IndRNN is of a wrong type"),
    "one loss": (put(0.5, *IN, "losses"), "losses of IndRNN is of a wrong type"),
    "no weight": (remove(*IN, "model", "head.weight"), "Error(s) in loading state_dict"),
    "no optimizer": (remove(*IN, "optimizer"), "it lacks 'optimizer'"),
    "empty state": (put({}, *IN, "optimizer", "state"), "lacks the state of a parameter"),
    "no moment": (remove(*IN, "optimizer", "state", 0, "exp_avg"), "lacks the state of a param"),
    "no betas": (remove(*IN, "optimizer", "param_groups", 0, "betas"), "has other options"),
    "a generator of 3": (put(3, *IN, "generator"), "does not fit the model: "),
    "no random state": (remove("random_state"), "it lacks 'random_state'"),
    "a short random state": (put(torch.zeros(3), "random_state"), "does not fit the model: "),
}
WRONG |= {
    f"adding --resume {{tmp}}/{name.replace(' ', '-')}": said for name, (_, said) in EDITED.items()
}


@pytest.fixture(scope="module")
def answers(finished, tmp_path_factory):
    """Exit status and stderr for each line of WRONG, asked in one process."""
    tmp = tmp_path_factory.mktemp("wrong")
    for name in ("torn", "other"):
        (tmp / name).mkdir()
    whole = (finished[0] / "checkpoint.pt").read_bytes()
    (tmp / "torn" / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": torch.zeros(3)}, tmp / "other" / "checkpoint.pt")
    for name in ("module", "busy", *(name.replace(" ", "-") for name in EDITED)):
        (tmp / name).mkdir()
    torch.save(torch.nn.Linear(1, 1), tmp / "module" / "checkpoint.pt")
    for name, (edit, _) in EDITED.items():
        content = checkpoint(finished[0])
        edit(content)
        torch.save(content, tmp / name.replace(" ", "-") / "checkpoint.pt")
    names = {"tmp": tmp, "run": finished[0]}
    before = files(tmp)
    code = """
import contextlib, io, json, sys
from bench.__main__ import main
answers = []
for line in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = main(line.split())
        except SystemExit as exit:
            status = exit.code
    answers.append([status, said.getvalue()])
print(json.dumps(answers))
"""
    with in_use(tmp / "busy"):
        given = in_bench(code, *(line.format(**names) for line in WRONG))
    assert files(tmp) == before, "nothing is written"
    return names, dict(zip(WRONG, given, strict=True))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def in_use(folder):
    """Holds the folder as a run does."""
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    yield
    os.close(held)


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_request_gets_one_clear_line(line, answers):
    names, given = answers
    status, said = given[line]
    assert status == 2
    assert WRONG[line].format(**names) in said
    assert re.fullmatch(r"python -m bench.*: error: .*\n", said), "one line"
    assert "weights_only" not in said, "no advice to run what is in a file"
