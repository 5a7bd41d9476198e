"""The linter, the formatter and the type checker find nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command, cwd=ROOT):
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_and_format():
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


def test_types(tmp_path):
    """On the layout that is installed: kernels/ within fastindrnn/, which mypy would not find."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastindrnn", tmp_path / "fastindrnn", ignore=ignore)
    shutil.copytree(ROOT / "kernels", tmp_path / "fastindrnn" / "kernels", ignore=ignore)
    config = str(ROOT / "pyproject.toml")
    run("mypy", "--config-file", config, "-p", "fastindrnn", cwd=tmp_path)
