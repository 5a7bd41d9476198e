"""`python -m bench TASK`: what is trained and written, stopped and resumed."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_command import ADDING, SMALL, checkpoint, files, refusal, report, run, write_data

from bench import page
from bench.__main__ import TASKS
from bench.tasks import mnist, training

ROOT = Path(__file__).parents[1]
WRITTEN = {"checkpoint.pt", "report.json", "curves.png"}
# Beside the curves.
ALSO_WRITTEN = {
    "airline": {"forecast.png"},
    "handwriting": {"characters.png"},
    "memory": {"gradients.png", "bounds.png", "remembered.png"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("mnist") / "data")


TINY = ["--layers", "1", "--parameters", "4000", "--batch", "4", "--steps", "57"]
TINY += ["--seconds", "1e6"]  # the rate falls by steps, however slow the machine is


@pytest.fixture(scope="module")
def commands(data):
    """Of each task a command that trains a small network for at least 50 steps."""
    series = ["--batch", "4", "--epochs", "25", "--parameters", "2000"]
    need_files = {
        "airline": ["--steps", "57", "--history", "60"],
        "chars": [*TINY, "--length", "10", "--model", "indrnn,lstm"],
        "handwriting": [*TINY, "--model", "residual", "--sample", "2"],
        "mnist": ["--batch", "8", "--layers", "2", "--epochs", "3"],
        "skeleton": [*series, "--model", "indrnn,lstm"],
        "speech": [*series, "--model", "irnn-small,indrnn", "--bidirectional"],
        "tagging": [*TINY, "--evaluate-every", "15"],
        "vowels": [*series, "--model", "residual,lstm"],
    }
    memory = ["--batch", "2", "--layers", "2", "--model", "indrnn", "--gammas", "5"]
    return {
        "adding": [*ADDING, "--steps", "57", "--keep-going", "--decay-every", "25"],
        "algorithms": ["algorithms", *SMALL, "--batch", "2", "--steps", "50", "--growing", "30"],
        "memory": ["memory", *SMALL, *memory, "--length", "12", "--steps", "50"],
        **{task: [task, *SMALL, *own, "--data", str(data)] for task, own in need_files.items()},
    }


def test_every_task_is_stopped_and_resumed_here(commands):
    assert commands.keys() == TASKS.keys()


@pytest.mark.parametrize("task", TASKS)
def test_what_full_sets_are_settings_that_an_option_could_give(task):
    """Each value is of the type that its option gives."""
    chosen = page.task_of(task)
    options = {name.replace("-", "_"): parse for name, (_, parse, _) in chosen.SETTINGS.items()}
    for name, value in chosen.FULL.items():
        if name.replace("_", "-") in chosen.FLAGS:
            assert value is True
        elif isinstance(options[name], tuple):
            assert value in options[name]
        elif value is not None:
            text = ",".join(value) if isinstance(value, list) else str(value)
            assert options[name](text) == value


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """{task: (folder, what was printed)} of runs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    return {
        task: (folder / task, run(*command, "--out", folder / task)[0])
        for task, command in commands.items()
    }


# What is trained and written.


def test_mnist_writes_report_plot_and_lines(finished):
    folder, output = finished["mnist"]
    content, (state,) = report(folder), checkpoint(folder)["learners"].values()
    (result,) = content["models"].values()
    assert {path.name for path in folder.iterdir()} == WRITTEN
    # A twentieth of 400 is held out; 380 images are 48 batches of 8, the last of 4.
    assert content["images"] == {"train": 380, "validation": 20, "test": 30}
    assert result["steps"] == 3 * 48
    assert [line["step"] for line in result["validations"]] == [48, 96, 144]
    assert "data" not in content["settings"], "a folder of this machine"
    losses, accuracies = state["series"]["loss"], state["series"]["accuracy"]
    assert len(losses) == len(accuracies) == 144
    assert sum(losses[-20:]) < sum(losses[:20])
    assert result["curve"][0]["accuracy"] == pytest.approx(sum(accuracies[:100]) / 100)
    assert 0 <= result["test"]["accuracy"] <= 1
    assert re.search(r"step +10  loss \d\.\d+, mean .*  accuracy \d\.\d+, mean .* ms/step", output)
    assert re.search(r"step +144  accuracy 0\.\d+, loss .*, accuracy, running norms 0\.", output)
    assert mnist.authors_log(content["settings"], "indrnn") == {}, "none for this network"


@pytest.mark.parametrize("model", ["residual", "dense"])
def test_the_other_stacks_train(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTINDRNN_DATA", str(data))
    more = ["--model", model, "--epochs", "1", "--permuted", "--limit-train", "24"]
    output, _ = run("mnist", *SMALL, "--batch", 8, *more, "--out", tmp_path)
    content = report(tmp_path)
    assert content["images"]["train"] == content["settings"]["limit_train"] == 24
    (result,) = content["models"].values()
    assert result["steps"] == 3
    assert "permuted MNIST" in output
    assert len(result["validations"]) == 1


IMAGES = {"train": (torch.zeros(1, 784), torch.zeros(1))}


@pytest.mark.parametrize(("model", "layers"), mnist.PUBLISHED_PARAMETERS)
def test_parameters_and_settings_are_the_published_ones(model, layers, monkeypatch):
    """The count; and where u starts, what decays, and what is clipped and bounded."""
    settings = {
        name.replace("-", "_"): default for name, (default, *_) in mnist.Mnist.SETTINGS.items()
    }
    settings |= {"layers": layers, "device": "cpu"}
    monkeypatch.setattr(mnist, "load_images", lambda settings: (IMAGES, {}))
    settings |= {"model": [model], "full": False, "permuted": False}
    (learner,) = mnist.Mnist(settings).learners
    assert learner.parameters == mnist.PUBLISHED_PARAMETERS[model, layers]
    named = dict(learner.model.named_parameters())
    u, largest = [p for name, p in named.items() if "weight_hh" in name], 5 ** (1 / 784)
    assert all(0 <= v.min() < 0.2 and v.max() <= largest for v in u[:-1]), "U(0, largest)"
    assert 1 / largest <= u[-1].min() <= u[-1].max() <= largest
    for v in u:
        v.grad = torch.full_like(v, -1e9)
    learner.optimizer.step()
    assert all(v.grad.min() == -10 for v in u), "clipped"
    assert all(v.max() <= largest for v in u), "bounded"
    decayed, kept = learner.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-4, 0)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in named.values() if p.dim() == 2}
    weights = [p for p in learner.model.stack.parameters() if p.dim() == 2]
    assert all(p.abs().max() <= (6 / 65 / p.shape[1]) ** 0.5 for p in weights)
    pixels = mnist.pixels(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(pixels, torch.arange(256) / 128 - 1)


# Stopped, resumed, and what holds while a run lasts.


def assert_same(actual, expected, path="checkpoint"):
    """All numbers of two checkpoints; not how long the steps took, nor what may be changed."""
    if isinstance(expected, dict):
        skipped = {"seconds", "step_seconds", "digest", "settings"}
        for key in expected.keys() - skipped:
            assert_same(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), path
    elif isinstance(expected, list):
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        assert actual == expected, path


def written(task):
    return WRITTEN | ALSO_WRITTEN.get(task, set())


def interrupted(command, folder, monkeypatch):
    """Ctrl-C after 20 steps; another run does not get the folder."""
    line = training.Learner.line

    def interrupt(learner):
        if learner.step == 20:
            with torch.random.fork_rng():  # the other run is of the same process here
                for word in ("--out", "--resume"):
                    assert f"{folder} is in use by another run" in refusal("adding", word, folder)
            os.kill(os.getpid(), signal.SIGINT)
        return line(learner)

    with monkeypatch.context() as patch:
        patch.setattr(training.Learner, "line", interrupt)
        output, _ = run(*command, "--out", folder, status=130)
    assert f"python -m bench {command[0]} --resume {folder}" in output
    assert {path.name for path in folder.iterdir()} == written(command[0])


KILLED = """
import os, signal, sys
from bench.__main__ import main
from bench.tasks import training

replace, saves = os.replace, []

def kill(source, target):
    if target.name == "checkpoint.pt":
        saves.append(target)
        if len(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace, training.SAVE_SECONDS = kill, 0
sys.exit(main())
"""


def killed(command, folder, monkeypatch):
    """kill -9 while the third checkpoint is written, one every ten steps."""
    command = [sys.executable, "-c", KILLED, *command, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name for path in folder.iterdir()} == WRITTEN - {"curves.png"} | {
        ".checkpoint.pt.part"
    }


@pytest.mark.parametrize(
    ("task", "stop"), [(task, killed if task == "mnist" else interrupted) for task in TASKS]
)
def test_a_stopped_run_ends_as_if_it_never_had_been(
    task, stop, commands, finished, tmp_path, monkeypatch
):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    folder, whole = tmp_path / "stopped", finished[task][0]
    stop(commands[task], folder, monkeypatch)
    begun, *_ = checkpoint(folder)["learners"].values()
    assert len(begun["series"]["loss"]) == 20
    run(task, "--resume", folder)
    assert {path.name for path in folder.iterdir()} == written(task)
    assert_same(checkpoint(folder), checkpoint(whole))


def test_a_full_disk_gets_one_line_and_the_old_checkpoint_stays_whole(
    finished, tmp_path, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder, _ = finished["adding"]
    before = files(folder)
    monkeypatch.setattr(os, "fsync", full)
    said = refusal(*ADDING, "--steps", 20, "--out", tmp_path)
    path = tmp_path / "checkpoint.pt"
    assert said.endswith(f"error: {path} cannot be written: No space left on device\n")
    assert not files(tmp_path)
    said = refusal("adding", "--resume", folder, "--steps", 70)
    assert said.endswith("No space left on device; the one from before is whole\n")
    assert files(folder) == before
