"""What is run on a GPU, as far as it can be tested without one: bench/gpu.sh, its launches, and the
sweep of `python -m bench tune`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
STAGES = ["environment", "tests", "memcheck", "racecheck", "tune", "speed"]

needs_bash = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("timeout")), reason="gpu.sh is for Linux"
)

# Writes down what it was asked for, and does as the file named after the stage says.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-m fastindrnn"*) stage=environment ;;
  *"-m pytest"*) stage=tests ;;
  *bench.launches*) stage=$TOOL ;;
  *"bench tune"*) stage=tune ;;
  *"bench speed"*) stage=speed ;;
  *"pip install"*) stage=wheels ;;
  *xdist*) exit 1 ;;
esac
echo "$stage: $* ($CUBLAS_WORKSPACE_CONFIG)" >>"$CALLS"
[[ $PYTHONPATH == "$PWD":* && -f bench/gpu.sh ]] || exit 7
echo "output of $stage"
if [[ -f $PLAN/$stage ]]; then . "$PLAN/$stage"; fi
"""
SANITIZER = """#!/usr/bin/env bash
while [[ $1 != python3 ]]; do
  [[ $1 == --tool ]] && export TOOL=$2
  shift
done
"$@"
"""


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs gpu.sh with a python3 and a compute-sanitizer that do as `plan` {stage: bash} says."""
    tools, plan_folder, out = tmp_path / "bin", tmp_path / "plan", tmp_path / "new" / "out"
    for folder in (tools, plan_folder):
        folder.mkdir()
    for name, text in (("python3", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "PLAN": str(plan_folder),
        "TMPDIR": str(tmp_path),
    }

    def run(*options, plan=None, checkout=ROOT):
        for stage, text in (plan or {}).items():
            (plan_folder / stage).write_text(text)
        command = ["bash", str(checkout / "bench" / "gpu.sh"), *options, str(out)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert not list(tmp_path.glob("tmp.*")), "leaves nothing behind"
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
    assert {path.name for path in out.iterdir()} == files, "8 files at most come back"
    for stage in STAGES:
        assert f"output of {stage}" in (out / f"{stage}.log").read_text()
    (tests,) = (line for line in calls.splitlines() if line.startswith("tests: "))
    assert "tests/test_scan_triton.py" in tests
    assert "tests/test_bench_tasks.py" not in tests
    assert tests.endswith("(:4096:8)")
    assert f"--device cuda --out {out}/speed.json" in calls


@needs_bash
def test_a_stage_that_fails_does_not_end_the_others(gpu_sh):
    done, became, _, out = gpu_sh(
        plan={
            "tests": "echo 3 failed; exit 1",
            "memcheck": "exit 9",
            "racecheck": "echo Device not supported; exit 1",
        }
    )
    assert done.returncode == 1
    assert became["tests"].startswith("FAILED with status 1")
    assert became["memcheck"].startswith("FAILED with status 9")
    assert became["racecheck"].startswith("skipped: ")
    assert became["speed"].startswith("passed")
    assert "3 failed" in (out / "tests.log").read_text()
    assert "3 failed" in done.stdout


@needs_bash
def test_what_hangs_is_stopped_and_what_comes_after_the_end_is_not_begun(gpu_sh):
    done, became, calls, out = gpu_sh(
        "--seconds", "3", "--only", "tune,speed", plan={"tune": "sleep 60"}
    )
    assert done.returncode == 1
    assert became["tune"].startswith("STOPPED after ")
    assert became["speed"] == "NOT REACHED"
    assert "bench speed" not in calls
    assert [path.name for path in out.iterdir()] == ["tune.log"], "only these stages"


@needs_bash
def test_carried_wheels_are_installed(gpu_sh, tmp_path):
    checkout = tmp_path / "checkout"
    for folder in ("bench", "tests", ".whl"):
        (checkout / folder).mkdir(parents=True)
    shutil.copy(ROOT / "bench" / "gpu.sh", checkout / "bench")
    (checkout / ".whl" / "a-1-py3-none-any.whl").touch()
    plan = {"wheels": "exit 1"}
    done, _, calls, _ = gpu_sh("--only", "speed", plan=plan, checkout=checkout)
    assert done.returncode == 0, "what needs them fails later, and says so"
    assert calls.startswith("wheels: -m pip install -q --no-index --no-deps ")
    assert ".whl/a-1-py3-none-any.whl" in calls.splitlines()[0]


@needs_bash
@pytest.mark.parametrize("options", [["--seconds", "0"], ["--only", "A"], ["--fast"], ["one"]])
def test_a_wrong_request_gets_the_usage(gpu_sh, options):
    done, _, _, out = gpu_sh(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert not out.exists()


@pytest.fixture
def tune():
    pytest.importorskip("triton", reason="Triton is for Linux")
    from bench import tune

    return tune


def test_the_launches_for_the_sanitizer_run(tune):
    from bench.launches import launch_all

    device = "cuda" if torch.cuda.is_available() else "cpu"
    launch_all(device, ["scan", "layer"], [torch.float32], [(1, 16, 3, 5)])


def measure(functions):
    """Says that the last choice is twice as fast as the others."""
    list(functions.values())[-1]()
    return {
        name: [1.0, 1.1, 1.2] if index == len(functions) - 1 else [2.0, 2.2, 2.4]
        for index, name in enumerate(functions)
    }


@pytest.mark.parametrize(
    ("operation", "sizes", "dtype", "words"),
    [
        ("scan forward", (2, 36, 33), "float32", ("chunks", "rows", "block_n")),
        ("scan backward", (1, 36, 40), "bfloat16", ("chunks", "rows", "block_n")),
        ("layer forward", (3, 36, 10), "float32", ("slices 2", "slices 3", "chained False")),
    ],
)
def test_the_sweep_times_the_pick_and_what_lies_near_it(tune, operation, sizes, dtype, words):
    torch.manual_seed(0)
    (record,) = tune.sweep([(operation, sizes, dtype)], torch.device("cpu"), measure)
    pick, *others = record["ms"]
    assert pick == record["pick"]
    assert not record["errors"]
    for word in words:
        assert any(word in choice for choice in others), word
    assert record["best"] == others[-1]
    assert record["pick_over_best"] == pytest.approx(2)
    assert record["ms"][pick] == pytest.approx([2000, 2200, 2400])
    assert "BEHIND 2.00x" in tune.line(record)


def test_the_sweep_does_not_time_what_is_wrong(tune, monkeypatch):
    right = tune.OPERATIONS["scan forward"]

    def prepare(*arguments):
        compute = right.prepare(*arguments)

        def changed(choice):
            h_n, h = compute(choice)
            return (h_n * 1.01, h) if choice.rows == 16 else (h_n, h)

        return changed

    monkeypatch.setitem(tune.OPERATIONS, "wrong", right._replace(prepare=prepare))
    torch.manual_seed(0)
    (record,) = tune.sweep([("wrong", (1, 36, 16), "float32")], torch.device("cpu"), measure)
    ((choice, error),) = record["errors"].items()
    assert "rows 16" in choice
    assert error.startswith("WRONG: off by ")
    assert not any("rows 16" in choice for choice in record["ms"])
    assert error in tune.line(record)
    assert tune.summary([record]) == ("1 of 1 picks are BEHIND; 1 choices are wrong", 1)


def test_the_sweep_ends_when_its_time_is_over(tune):
    cases = [("scan forward", (2, 36, 33), "float32")]
    (record,) = tune.sweep(cases, torch.device("cpu"), measure, seconds=0)
    assert tune.line(record).endswith("not reached")
    text, status = tune.summary([record])
    assert "1 cases were not reached" in text
    assert status == 0


def test_what_is_compiled_ahead_can_be_compiled(tune):
    pick, _ = tune.OPERATIONS["scan backward"].choices(1, 36, 16, torch.float32, "cpu")
    tune.compile_one("scan backward", 16, "float32", "cpu", pick)


ALONE = """
import sys
sys.modules |= dict.fromkeys(["matplotlib", "tqdm", "pytest_benchmark"])
import bench.launches, bench.tune
from bench.__main__ import main
sys.exit(main(["speed", "--device", "cpu", "--sizes", "1x2x3", "--out", sys.argv[1]]))
"""


def test_a_gpu_machine_needs_no_package_of_training_and_charts(tune, tmp_path):
    command = [sys.executable, "-c", ALONE, str(tmp_path / "speed.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
