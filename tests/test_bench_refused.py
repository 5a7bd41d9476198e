"""What `python -m bench` says of itself, and what it refuses: one line that says what is wrong, and
nothing is written."""

import gzip
import struct
import tracemalloc

import pytest
import torch
from bench_command import (
    ADDING,
    MNIST,
    SIDE,
    SMALL,
    checkpoint,
    files,
    idx_file,
    refusal,
    run,
    write,
    write_data,
)

from bench.__main__ import COMMANDS
from bench.arguments import UserError
from bench.tasks import idx


@pytest.fixture(scope="module")
def adding(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("adding")
    run(*ADDING, "--steps", 20, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    data = write_data(folder / "data")
    run("mnist", *SMALL, "--layers", 1, "--epochs", 1, "--data", data, "--out", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_writes(command):
    assert f"    {command}" in run("--help")[0]
    printed, _ = run(command, "--help")
    assert "It writes" in printed
    assert "runs/" in printed or command in ("report", "results", "tune")


def remove_a_network(content):
    del content["learners"]


def change_a_setting(content):
    content["settings"]["lr"] = float("nan")


def change_a_weight(content):
    (learner,) = content["learners"].values()
    next(iter(learner["model"].values())).add_(1)


def remove_the_digest(content):
    del content["digest"]


EDITS = remove_a_network, change_a_setting, change_a_weight, remove_the_digest


@pytest.mark.parametrize("edit", EDITS)
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
    "mnist --resume {mnist} --permuted": "--permuted True: the run to resume has False",
    "speed --sizes 3x0x4": "argument --sizes: '3x0x4' must be BxTxN, as in 32x1000x128",
    "tune --device cpu": "tuning needs a GPU, which cpu is not",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_request_gets_one_clear_line(line, adding, mnist, monkeypatch):
    monkeypatch.delenv("FASTINDRNN_DATA", raising=False)
    names = {"run": adding, "mnist": mnist}
    before = files(names["run"])
    assert WRONG[line].format(**names) in refusal(*line.format(**names).split())
    assert files(names["run"]) == before


IMAGES, LABELS, TEST_LABELS = (f"{name}.gz" for name in list(MNIST)[:2] + list(MNIST)[3:])
SOURCE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
BROKEN = {  # what a file of the four holds, and what the one line says
    "unpacked": (LABELS, b"<html>not found</html>", "is broken: Not a gzipped file"),
    "torn": (IMAGES, gzip.compress(idx_file(2051, 400, 5, 5))[:-12], "is broken: Compressed file "
             "ended before"),
    "magic": (LABELS, idx_file(2051, 3, 1, 1), f"its magic number is 2051, not 2049; a whole one "
              f"is at {SOURCE}{LABELS}"),
    "short": ("t10k-images-idx3-ubyte", idx_file(2051, 30, 5, 5)[:-10], "740 bytes of data, but "
              "the header says 30 x 5 x 5"),
    "long": (TEST_LABELS, idx_file(2049, 30) + b"0", "more than 30 bytes of data, but the header "
             "says 30"),
    "header": (TEST_LABELS, b"1234", "4 bytes are too few for a header of 8"),
    "empty": (TEST_LABELS, idx_file(2049, 0), "its header says 0"),
    "huge": (TEST_LABELS, struct.pack(">2I", 2049, 1 << 31), "its header says 2147483648"),
    "digit": (TEST_LABELS, idx_file(2049, 30, values=10), "a label is 10, but they are digits"),
    "count": (TEST_LABELS, idx_file(2049, 29), "29 labels for 30 images"),
    "size": ("t10k-images-idx3-ubyte", idx_file(2051, 30, 2, 5), "not of the training images'"),
    "other": (LABELS, idx_file(2049, 400), "holds other images than the run to resume has seen"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_data_file_gets_one_clear_line(name, tmp_path, mnist):
    file, content, said = BROKEN[name]
    folder = write_data(tmp_path / "data")
    is_packed = file.endswith(".gz") and name not in ("unpacked", "torn")
    (folder / file).write_bytes(gzip.compress(content) if is_packed else content)
    words = ["--resume", mnist] if name == "other" else ["--out", tmp_path / "run"]
    assert said in refusal("mnist", *words, "--data", folder)
    assert not (tmp_path / "run").exists()


def test_missing_and_few_data(tmp_path):
    folder = write_data(tmp_path / "data")
    write(folder, "train-labels-idx1-ubyte", idx_file(2049, 19))
    write(folder, "train-images-idx3-ubyte", idx_file(2051, 19, SIDE, SIDE))
    said = refusal("mnist", "--data", folder)
    assert "19 training images are too few: a twentieth is to validate on" in said
    (folder / "t10k-images-idx3-ubyte").unlink()
    said = refusal("mnist", "--data", folder)
    assert f"t10k-images-idx3-ubyte.gz is missing; it is at {SOURCE}t10k-images-idx" in said


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_promises(tmp_path):
    """100 megabytes of zeros behind the labels."""
    folder = write_data(tmp_path / "bomb")
    member = gzip.compress(bytes(1 << 20))  # a file of several members is their contents in a row
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_file(2049, 30)) + 100 * member)
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 30 bytes of data, but the header says 30;"):
        idx.load(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20
