"""The linter, the formatter and the type checker find nothing."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command):
    command = [sys.executable, "-m", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_and_format():
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


def test_types():
    run("mypy")
