"""What is run on a GPU, as far as it can be tested without one: bench/gpu.sh, its launches, and the
sweep of `python -m bench tune`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.speed.cases import Case

ROOT = Path(__file__).parents[1]
STAGES = ["environment", "tests", "memcheck", "racecheck", "tune", "speed"]

needs_bash = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("timeout")), reason="gpu.sh is for Linux"
)
# In place of python3: writes down what it was asked for, and does as the file named after the stage
# says. compute-sanitizer leaves its tool, the name of the stage, to it.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-m fastindrnn"*) stage=environment ;;
  *"-m pytest"*) stage=tests ;;
  *bench.launches*) stage=$TOOL ;;
  *"bench tune"*) stage=tune ;;
  *"bench speed"*) stage=speed ;;
  *xdist*) exit 1 ;;
esac
echo "$stage: $* ($CUBLAS_WORKSPACE_CONFIG)" >>"$CALLS"
[[ $PYTHONPATH == "$PWD"* && -f bench/gpu.sh ]] || exit 7
echo "output of $stage"
if [[ -f $PLAN/$stage ]]; then . "$PLAN/$stage"; fi
"""
SANITIZER = """#!/usr/bin/env bash
TOOL=$4 exec "${@:5}"
"""


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs gpu.sh with a python3 and a compute-sanitizer that do as `plan` {stage: bash} says."""
    tools, out = tmp_path / "bin", tmp_path / "new" / "out"
    tools.mkdir()
    for name, text in (("python3", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls, path = tmp_path / "calls", f"{tools}:{os.environ['PATH']}"
    names = {"PATH": path, "CALLS": str(calls), "PLAN": str(tools)}

    def run(*options, plan=()):
        for stage, text in dict(plan).items():
            (tools / stage).write_text(text)
        command = ["bash", str(ROOT / "bench" / "gpu.sh"), *options, str(out)]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | names, capture_output=True, text=True
        )
        closing = done.stdout.partition("logs and JSON in ")[2].splitlines()[1:]
        became = dict(line.split(None, 1) for line in closing)
        return done, became, calls.read_text() if calls.exists() else "", out

    return run


@needs_bash
def test_all_stages_run_and_write_what_comes_back(gpu_sh):
    write = 'echo "{}" >"${@: -1}"'
    done, became, calls, out = gpu_sh(plan={"tune": write, "speed": write})
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(became) == STAGES
    assert all(word.startswith("passed after ") for word in became.values())
    files = {f"{stage}.log" for stage in STAGES} | {"tune.json", "speed.json"}
    assert {path.name for path in out.iterdir()} == files
    (tests,) = (line for line in calls.splitlines() if line.startswith("tests: "))
    assert "tests/test_scan_triton.py" in tests
    assert "tests/test_bench_tasks.py" not in tests
    assert tests.endswith("(:4096:8)")
    assert f"--device cuda --out {out}/speed.json" in calls


@needs_bash
def test_a_stage_that_fails_does_not_end_the_others(gpu_sh):
    plan = {"tests": "echo 3 failed; exit 1", "racecheck": "echo Device not supported; exit 1"}
    done, became, _, out = gpu_sh(plan=plan)
    assert done.returncode == 1
    assert became["tests"].startswith("FAILED after ")
    assert became["racecheck"].startswith("skipped: ")
    assert became["speed"].startswith("passed after ")
    assert "3 failed" in (out / "tests.log").read_text()
    assert "3 failed" in done.stdout


@needs_bash
def test_what_hangs_is_stopped_and_what_comes_after_the_end_is_not_begun(gpu_sh):
    plan = {"tune": "sleep 60"}
    # A machine with much else to do may take seconds before the first stage.
    done, became, calls, _ = gpu_sh("--seconds", "6", "--only", "tune,speed", plan=plan)
    assert done.returncode == 1
    assert became["tune"].startswith("STOPPED after ")
    assert became["speed"] == "NOT REACHED"
    assert "bench speed" not in calls


@needs_bash
@pytest.mark.parametrize("options", [["--seconds", "0"], ["--only", "A"], ["--fast"], ["one"]])
def test_a_wrong_request_gets_the_usage(gpu_sh, options):
    done, _, _, out = gpu_sh(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert not out.exists()


def test_the_launches_for_the_sanitizer_run():
    pytest.importorskip("triton", reason="Triton is for Linux")
    from bench.launches import launch_all

    device = "cuda" if torch.cuda.is_available() else "cpu"
    launch_all(device, ["scan", "layer"], [torch.float32], [(1, 16, 3, 5)])


@pytest.fixture
def tune():
    pytest.importorskip("triton", reason="Triton is for Linux")
    from bench import tune

    torch.manual_seed(0)
    return tune


def sweep(tune, cases, seconds=100, out=None):
    """As of a clock by which the first function that it is called with, the pick, takes twice as
    long as any other."""
    first = []

    def clock(function):
        first.append(function)
        return 2.0 if function is first[0] else 1.0

    deadline = time.monotonic() + seconds
    return tune.sweep(cases, torch.device("cpu"), clock, deadline, out)


@pytest.mark.parametrize(
    ("case", "tried"),
    [
        (((2, 36, 33), "float32", "scan forward"), ("stages=2", "rows=16", "block_n=64")),
        (((1, 36, 40), "bfloat16", "scan backward"), ("chunks=2", "rows=8", "block_n=32")),
        (((3, 36, 10), "float32", "layer forward"), ("slices=2", "tile=Tile", "chained=True")),
    ],
)
def test_the_sweep_times_the_pick_and_what_lies_near_it(tune, case, tried, tmp_path, capsys):
    assert sweep(tune, [Case(*case)], out=tmp_path / "tune.json") == 0
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert [row["ms"][0] for row in rows] == [2000, *[1000] * (len(rows) - 1)]
    assert all(any(word in row["name"] for row in rows[1:]) for word in tried)
    printed = capsys.readouterr().out
    assert re.search(rf"^BEHIND 2.00x: {re.escape(str(Case(*case)))}: ", printed, re.MULTILINE)
    assert "1 of 1 picks are BEHIND; 0 choices are wrong" in printed


def test_the_sweep_does_not_time_what_is_wrong(tune, monkeypatch, capsys, tmp_path):
    def wrong(*arguments):
        choices, compute = tune.scan_forward(*arguments)
        return choices, lambda choice: [
            x * (1.01 if choice.rows == 16 else 1) for x in compute(choice)
        ]

    monkeypatch.setitem(tune.OPERATIONS, "wrong", wrong)
    cases, out = [Case((1, 36, 16), "float32", "wrong")], tmp_path / "tune.json"
    assert sweep(tune, cases, out=out) == 1
    (row,) = (row for row in json.loads(out.read_text())["rows"] if "ms" not in row)
    assert "rows=16" in row["name"]
    assert row["error"].startswith("Wrong: off by ")
    assert "; 1 choices are wrong" in capsys.readouterr().out


def test_the_sweep_ends_when_its_time_is_over(tune, capsys):
    assert sweep(tune, [Case((2, 36, 33), "float32", "scan forward")], seconds=0) == 0
    assert "1 cases were not reached" in capsys.readouterr().out


def test_what_is_compiled_ahead_can_be_compiled(tune):
    (pick, *_), _ = tune.scan_backward(1, 36, 16, torch.float32, "cpu")
    tune.compile_one("scan backward", 16, "float32", "cpu", pick)


ALONE = """
import sys
sys.modules |= dict.fromkeys(["matplotlib", "tqdm"])
import bench.launches, bench.tune
from bench.__main__ import main
sys.exit(main(["speed", "--device", "cpu", "--sizes", "1x2x3", "--out", sys.argv[1]]))
"""


def test_a_gpu_machine_needs_no_package_of_training_and_charts(tmp_path):
    pytest.importorskip("triton", reason="Triton is for Linux")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "speed.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
