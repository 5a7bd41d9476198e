"""What README.md shows works: its Python runs, its commands are those of .ci/run and of bench."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)


def steps(command):
    """The parts of 'a && b && c', each as a list of words."""
    return [shlex.split(part) for part in command.split(" && ")]


def test_python_runs():
    """One block after the other, each with what those before it have made."""
    names = {"__name__": "readme"}
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), names)


def test_there_is_an_example_and_two_commands():
    assert PYTHON
    assert len(COMMANDS) == 2
    main_job, tests = (steps(command)[-1] for command in COMMANDS)
    assert main_job == [".venv/bin/python", "-m", "bench", "adding"]
    assert tests == [".venv/bin/pytest"]


@pytest.mark.parametrize("command", COMMANDS, ids=["main job", "tests"])
def test_each_command_sets_up_what_it_needs(command):
    make, install, _ = steps(command)
    assert make == ["python3", "-m", "venv", ".venv"]
    assert install[:3] == [".venv/bin/pip", "install", "-q"]
    assert (ROOT / install[install.index("-c") + 1]).is_file()
    extra = re.fullmatch(r"\.\[(\w+)\]", install[install.index("-e") + 1]).group(1)
    assert extra in importlib.metadata.metadata("fastindrnn").get_all("Provides-Extra")


def test_ci_runs_the_command_for_the_tests():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == [COMMANDS[1]]


def test_main_job_starts(tmp_path):
    words = steps(COMMANDS[0])[-1]
    small = ["--steps", "3", "--length", "20", "--hidden", "8", "--out", str(tmp_path)]
    subprocess.run([sys.executable, *words[1:], *small], cwd=ROOT, check=True)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_links_inside_the_repository_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target
