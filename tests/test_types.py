"""What type checkers say of a call: the output is of the input's kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USER = """
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastindrnn import Bidirectional, IndRNN, ResidualIndRNN


def of_kind(x: Tensor, packed: PackedSequence) -> tuple[Tensor, PackedSequence, Tensor]:
    rnn = IndRNN(3, 4, norm=nn.BatchNorm1d)
    output, h_n = rnn(x, lengths=x)
    packed_output, h_n = Bidirectional(lambda: ResidualIndRNN(3, 4))(packed, h_n, time_step=1)
    return output, packed_output, h_n


def wrong(x: Tensor, packed: PackedSequence) -> Tensor:
    IndRNN(3, 4)(packed, lengths=x)
    IndRNN(3, 4)("x")
    return IndRNN(3, 4)(packed)[0]
"""
ERRORS = USER.count("\n", 0, USER.index("    IndRNN(3, 4)(packed, lengths")) + 1
CHECKERS = {
    "mypy": ["--config-file", os.devnull, "--cache-dir", os.devnull],
    "pyright": ["--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", [pytest.param("mypy", marks=pytest.mark.slow), "pyright"])
def test_output_is_of_the_kind_of_the_input(checker, tmp_path):
    """Three mistakes in the second function, one a line, and none in the first."""
    (tmp_path / "script.py").write_text(USER)
    run = subprocess.run(
        [sys.executable, "-m", checker, *CHECKERS[checker], "script.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = {
        int(line.partition("script.py:")[2].split(":")[0])
        for line in run.stdout.splitlines()
        if "error:" in line
    }
    assert lines == {ERRORS, ERRORS + 1, ERRORS + 2}, run.stdout + run.stderr
