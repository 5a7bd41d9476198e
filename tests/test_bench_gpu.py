"""What is run on a GPU, as far as it can be tested without one: bench/gpu.sh, its launches, and the
sweep of `python -m bench tune`."""

import json
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
    assert "tests/test_bench.py" not in tests
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


def test_the_launches_for_the_sanitizer_run():
    pytest.importorskip("triton", reason="Triton is for Linux")
    from bench.launches import launch_all

    device = "cuda" if torch.cuda.is_available() else "cpu"
    launch_all(device, ["scan", "layer"], [torch.float32], [(1, 16, 3, 5)])


def in_bench(code, **environment):
    """Runs code in the root of the checkout, to import bench; returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def swept():
    """The sweep in Triton's interpreter, where another choice is said to be twice as fast."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    code = """
import json, torch
from bench import tune
torch.manual_seed(0)
right = tune.OPERATIONS["scan forward"]

def prepare(*arguments):
    compute = right.prepare(*arguments)
    def changed(choice):
        h_n, h = compute(choice)
        return (h_n * 1.01, h) if choice["rows"] == 8 else (h_n, h)
    return changed

tune.OPERATIONS["wrong"] = right._replace(prepare=prepare)

def measure(functions):
    list(functions.values())[-1]()
    return {name: [2.0, 2.2, 2.4] if i == 0 else [1.0, 1.1, 1.2]
            for i, name in enumerate(functions)}

cases = [("scan forward", (2, 36, 33), "float32"), ("scan backward", (1, 36, 40), "bfloat16"),
         ("wrong", (1, 36, 16), "float32"), ("layer forward", (3, 36, 10), "float32")]
device = torch.device("cpu")
records = list(tune.sweep(cases, device, measure))
late = list(tune.sweep(cases, device, measure, seconds=0))
tune.compile_one("scan backward", 16, "float32", "cpu", records[1]["pick"])
print(json.dumps([records, late, [tune.line(r) for r in records + late],
                  tune.summary(records), tune.summary(late)]))
"""
    return json.loads(in_bench(code, TRITON_INTERPRET="1"))


def test_sweep_times_the_pick_and_what_lies_near_it(swept):
    (forward, backward, _, _), _, lines, _, _ = swept
    for record, streams in ((forward, 1), (backward, 2)):
        choices = [result["choice"] for result in record["results"]]
        assert choices[0] == record["pick"]
        assert record["pick"]["rows"] == 16 // streams
        assert len(choices) > 3
        assert all(choice["chunks"] * choice["rows"] <= 36 for choice in choices)
        assert len({str(choice) for choice in choices}) == len(choices)
        for name in ("chunks", "rows", "block_n"):
            assert any(choice[name] != record["pick"][name] for choice in choices[1:]), name
        assert not record["errors"]
    assert forward["pick_over_best"] == pytest.approx(2)
    assert forward["best"] != forward["pick"]
    assert forward["results"][0]["ms"]["median"] == pytest.approx(2200)
    assert "BEHIND 2.00x" in lines[0]


def test_sweep_compares_the_ways_of_a_layer(swept):
    (_, _, _, layer), *_ = swept
    assert layer["pick"] == {"slices": 1}, "without TF32 the product is the library's"
    assert not layer["errors"], "fused, chained and split agree"
    choices = [result["choice"] for result in layer["results"]]
    assert {choice["slices"] for choice in choices if "slices" in choice} == {1, 2, 3}
    assert [choice["chained"] for choice in choices if "chained" in choice] == [False, True]


def test_sweep_does_not_time_what_is_wrong(swept):
    (_, _, wrong, _), _, lines, (text, status), _ = swept
    (error,) = wrong["errors"]
    assert error["choice"]["rows"] == 8
    assert error["error"].startswith("WRONG: off by ")
    assert all(result["choice"]["rows"] != 8 for result in wrong["results"])
    assert "WRONG" in lines[2]
    assert status == 1
    assert text == "4 of 4 picks are BEHIND; 1 choices are wrong"


def test_sweep_ends_when_its_time_is_over(swept):
    _, late, lines, _, (text, status) = swept
    assert [record["reached"] for record in late] == [False] * 4
    assert lines[4].endswith("not reached")
    assert "4 cases were not reached" in text
    assert status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "tuning needs a GPU, and PyTorch finds none"),
        (["--device", "cpu"], "tuning needs a GPU, which cpu is not"),
        (["--seconds", "0"], "argument --seconds: '0' must be a finite number above 0"),
    ],
)
def test_tune_without_a_gpu_gets_one_clear_line(words, said):
    done = subprocess.run(
        [sys.executable, "-m", "bench.tune", *words],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("python -m bench tune: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
