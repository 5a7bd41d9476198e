"""Every Triton kernel compiles for every target, without a GPU, and within its means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

SCRIPT = """if True:
    import json, sys
    from fastindrnn.kernels import aot
    if __name__ == "__main__":
        print(json.dumps([report._asdict() for report in aot.compile_all(sys.argv[1:])]))
"""
TABLE = Path(__file__).parent.parent / "bench" / "results" / "sass.json"
TARGETS = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """In a process of its own, because the interpreter, once chosen, replaces the compiler."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = tmp_path_factory.mktemp("aot") / "compile_all.py"
    script.write_text(SCRIPT.replace("\n    ", "\n").removeprefix("if True:\n"))
    found = subprocess.run(
        [sys.executable, str(script), *TARGETS], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def by_kernel(reports):
    return {(report["target"], report["dtype"], report["name"]): report for report in reports}


def test_all_targets_dtypes_and_kernels(reports):
    assert {report["target"] for report in reports} == set(TARGETS)
    assert {report["dtype"] for report in reports} == {"fp32", "bf16", "fp16", "fp64"}
    for kernel in ("forward", "backward", "fold", "fold backward", "carry", "fused", "fused back"):
        assert any(report["name"].startswith(kernel) for report in reports)
    assert len(by_kernel(reports)) == len(reports)


def test_nothing_spills(reports):
    """The state lives in registers; a spill would be traffic unseen.

    Two fused kernels with every option at once are allowed the few bytes that the table has.
    """
    spills = [report for report in reports if report["spilled"]]
    assert all("all options" in report["name"] for report in spills), spills
    assert sum(report["spilled"] for report in spills) <= 64


def test_scans_need_no_shared_memory(reports):
    scans = [report for report in reports if not report["name"].startswith("fused")]
    assert not [report for report in scans if report["shared"] or report["barriers"]]


def test_few_instructions_for_each_element(reports):
    """Memory allows the scans about 24, 36 and 12 on an H200; the fused kernel's goal is 12."""
    limits = {"forward relu": 6, "backward, clip relu": 12.5, "fold relu": 10, "fused relu": 12}
    for (target, dtype, name), report in by_kernel(reports).items():
        if target == "sm_90" and dtype == "bf16" and name in limits:
            assert report["per_element"] < limits.pop(name), report
    assert not limits


def test_no_kernel_grows_by_a_tenth(reports):
    """Against the committed table, which `python -m fastindrnn.kernels.aot --out` writes."""
    table = json.loads(TABLE.read_text())
    triton = pytest.importorskip("triton")
    if table["triton"] != triton.__version__:
        pytest.skip(f"the table is of triton {table['triton']}, this is {triton.__version__}")
    before = by_kernel(table["kernels"])
    assert set(before) == set(by_kernel(reports))
    for key, report in by_kernel(reports).items():
        for what in ("instructions", "per_element"):
            if report[what] is not None:
                assert report[what] <= 1.1 * before[key][what], (key, what)
