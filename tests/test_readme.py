"""What README.md shows works: its Python runs, its commands are those of .ci/run and of bench."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench import page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
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


def result(name):
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def words(text):
    """The text with each gap as one blank: where a line ends does not matter."""
    return " ".join(text.split())


def test_accuracy_is_as_measured():
    """The tables are what `python -m bench results` writes from the JSON files."""
    found = page.experiments()
    assert found
    for path, text in page.written(found).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m bench results"


def test_who_is_better_is_as_measured():
    """The tasks in which a network of others has the better figure are those of the sentence."""
    better = {}
    rows = README.partition(page.MARKS[0])[2].partition(page.MARKS[1])[0].strip().splitlines()[2:]
    for row in rows:
        task, _, _, figure, here, _, others = (cell.strip() for cell in row.split("|")[1:-1])
        for name, value in re.findall(r"([a-z-]+)[^:,]*: ([\d.]+)", others):
            sign = 1 if figure.startswith("accuracy") else -1
            if (
                "indrnn" not in name
                and sign * (float(value) - float(here.replace(",", "").split("%")[0].split(" ")[0]))
                > 0
            ):
                better.setdefault(task.split()[0].strip(":,"), set()).add(name)
    assert better == {"Algorithms": {"lstm"}, "Part-of-speech": {"bi-lstm"}, "Characters": {"gru"}}
    said = "an LSTM is better at the algorithms and, a little, at tags, a GRU at characters"
    assert said in words(README)


def test_memory_is_as_measured():
    """The sentence of the opening; the tables and plots of speed are drawn, and not written."""
    held = {}
    for row in result("speed-cpu")["rows"]:
        if row.get("bytes") and row["name"] in ("IndRNN", "nn.LSTM"):
            case = tuple(row[key] for key in ("B", "T", "N", "dtype", "what"))
            held.setdefault(case, {})[row["name"]] = row["bytes"]
    least = min(both["nn.LSTM"] / both["IndRNN"] for both in held.values() if len(both) == 2)
    assert f"holds at least {int(least)} times as much memory" in words(README)


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_links_inside_the_repository_exist(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target
