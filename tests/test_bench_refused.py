"""What `python -m bench` says of itself, and what it refuses: one line that says what is wrong, and
nothing is written."""

import pytest
import torch
from bench_command import ADDING, checkpoint, files, refusal, run

from bench.__main__ import COMMANDS


@pytest.fixture(scope="module")
def adding(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("adding")
    run(*ADDING, "--steps", 20, "--out", folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_writes(command):
    assert f"    {command}" in run("--help")[0]
    printed, _ = run(command, "--help")
    assert "It writes" in printed


def change_a_setting(content):
    content["settings"]["lr"] = float("nan")


def change_a_weight(content):
    (learner,) = content["learners"].values()
    next(iter(learner["model"].values())).add_(1)


def remove_the_digest(content):
    del content["digest"]


@pytest.mark.parametrize("edit", [change_a_setting, change_a_weight, remove_the_digest])
def test_an_edited_checkpoint_is_refused(edit, adding, tmp_path):
    content = checkpoint(adding)
    edit(content)
    torch.save(content, tmp_path / "checkpoint.pt")
    before = files(tmp_path)
    assert "checkpoint.pt has been changed since it was saved" in refusal(
        "adding", "--resume", tmp_path
    )
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: whole[: len(whole) // 2], "is not a checkpoint that can be read"),
        ({"weights": torch.zeros(3)}, "is not a checkpoint of this version"),
        (torch.nn.Linear(1, 1), "it holds more than tensors and plain values"),
    ],
    ids=["torn", "other", "a module"],
)
def test_what_is_no_checkpoint_is_refused(content, said, adding, tmp_path):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, (dict, torch.nn.Module)):
        torch.save(content, path)
    else:
        path.write_bytes(content((adding / path.name).read_bytes()))
    found = refusal("adding", "--resume", tmp_path)
    assert said in found
    assert "weights_only" not in found, "no advice to run what is in a file"


WRONG = {  # what is asked: what the one line says; {run} is a folder with a run
    "adding --length 1": "argument --length: '1' must be a whole number, at least 2",
    "adding --lr nan": "argument --lr: 'nan' must be a finite number above 0",
    "adding --device nowhere": "argument --device: 'nowhere' cannot be used: ",
    "adding --device meta": "argument --device: 'meta' cannot be used: ",
    "adding --resume {run}/nothing": "there is no checkpoint {run}/nothing/checkpoint.pt",
    "adding --resume {run} --length 21": "--length 21: the run to resume has 20",
    "adding --resume {run} --full": "--full True: the run to resume has False",
    "adding --out {run}": "{run} already holds a run; --resume {run} goes on with it",
    "adding --out {run}/report.json": "cannot make the folder {run}/report.json: ",
    "mnist": "--data DIR, or the variable FASTINDRNN_DATA, must name the folder with MNIST's four",
    "mnist --data {run}/nowhere": "there is no folder {run}/nowhere to read MNIST from; its files",
    "mnist --resume {run}": "checkpoint.pt is of python -m bench adding, not of mnist",
    "mnist --model fractal,lstm": "argument --model: 'fractal,lstm' must be some of indrnn,",
    "adding --model dense --hidden 12": "--hidden 12: must be a multiple of 8 with dense",
    "chars --data {run}": "there is no file {run}/tinyshakespeare.txt: https://",
    "results {run}/nothing": "{run}/nothing holds no report.json",
    "mnist --gamma 0.5": "argument --gamma: '0.5' must be a finite number, at least 1",
    "mnist --dropout 1.5": "argument --dropout: '1.5' must be a probability from 0 to 1",
    "speed --sizes 3x0x4": "argument --sizes: '3x0x4' must be BxTxN, as in 32x1000x128",
    "speed --out {run}/nothing/a.json": "there is no folder {run}/nothing for a.json",
    "report {run}/checkpoint.pt": "{run}/checkpoint.pt cannot be read: ",
    "report {run}/report.json": "report.json is not of this version of python -m bench speed",
    "tune --device cpu": "tuning needs a GPU, which cpu is not",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_request_gets_one_clear_line(line, adding, monkeypatch):
    monkeypatch.delenv("FASTINDRNN_DATA", raising=False)
    before = files(adding)
    assert WRONG[line].format(run=adding) in refusal(*line.format(run=adding).split())
    assert files(adding) == before
