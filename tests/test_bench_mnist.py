"""python -m bench mnist, on small images that the test writes in MNIST's format."""

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastindrnn import DenseIndRNN, IndRNN
from fastindrnn.norm import StepBatchNorm
from fastindrnn.optim import parameter_groups

ROOT = Path(__file__).parent.parent
SMALL = ["--hidden", 8, "--batch", 8, "--device", "cpu", "--threads", 1, "--save-every", 10]
SIDE = 5
FILES = {  # name: number of images, whether the file is packed
    "train-images-idx3-ubyte": (400, True),
    "train-labels-idx1-ubyte": (400, True),
    "t10k-images-idx3-ubyte": (30, False),
    "t10k-labels-idx1-ubyte": (30, True),
}


def idx(magic, *sizes, values):
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + values.astype(np.uint8).tobytes()


def write_data(folder):
    """Noise, with a bright row for each of the digits: something that can be learnt."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part in ("train", "t10k"):
        images_name, labels_name = (name for name in FILES if name.startswith(part))
        count = FILES[images_name][0]
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 50, (count, SIDE, SIDE))
        images[np.arange(count), labels // 2] += 100 + 100 * (labels % 2)[:, None]
        contents = {
            images_name: idx(2051, count, SIDE, SIDE, values=images),
            labels_name: idx(2049, count, values=labels),
        }
        for name, content in contents.items():
            write(folder, name, content)


def write(folder, name, content):
    if FILES[name][1]:
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / name).write_bytes(content)


def environment(**more):
    given = {name: value for name, value in os.environ.items() if name != "FASTINDRNN_DATA"}
    return given | {"OMP_NUM_THREADS": "1", **more}


def bench(*words):
    return python("import sys, bench.__main__ as b; sys.exit(b.main())", "mnist", *words)


def python(code, *words, **variables):
    """What code prints that is run in the root of the checkout, to import bench."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist") / "data"
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A folder with a run of three epochs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ["--data", data, *SMALL, "--layers", 2, "--epochs", 3, "--log-every", 10]
    return folder, bench(*options, "--out", folder)


def test_a_run_writes_report_plot_and_lines(finished, data):
    folder, output = finished
    content = report(folder)
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pt",
        "report.json",
        "curves.png",
    }
    assert content["environment"]["versions"]["torch"] == torch.__version__
    # A twentieth of 400 is held out; 380 images are 48 batches of 8, the last of 4.
    assert content["images"] == {"train": 380, "validation": 20, "test": 30}
    assert content["steps"] == 3 * 48
    assert [line["step"] for line in content["validations"]] == [48, 96, 144]
    assert "data" not in content["settings"], "a folder of this machine"
    state = checkpoint(folder)["learners"]["IndRNN 2 x 8"]
    assert len(state["losses"]) == len(state["accuracies"]) == 144
    assert sum(state["losses"][-20:]) < sum(state["losses"][:20])
    assert content["curve"][0]["accuracy"] == pytest.approx(sum(state["accuracies"][:100]) / 100)
    assert 0 <= content["test"]["accuracy"] <= 1
    assert (folder / "curves.png").read_bytes()[1:4] == b"PNG"
    assert re.search(r"step +10 +loss \d\.\d+ +accuracy \d+\.\d+% +\d+\.\d steps/s", output)
    assert re.search(r"epoch 3: validation \d+\.\d+ %, with", output), "no log for this network"


KILLED = """
import os, signal, sys
from bench.__main__ import main

replace, saves = os.replace, []

def kill(source, target):
    if target.name == "checkpoint.pt":
        saves.append(target)
        if len(saves) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = kill
sys.exit(main())
"""


def test_a_killed_run_ends_as_if_it_never_had_been(finished, data, tmp_path):
    """kill -9 in the second epoch, while a checkpoint is written; resume, compare all numbers of
    the state with one go."""
    folder = tmp_path / "killed"
    options = ["--data", data, *SMALL, "--layers", 2, "--epochs", 3, "--log-every", 10]
    command = [sys.executable, "-c", KILLED, "mnist", *map(str, options), "--out", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    # One checkpoint every ten steps, and one at the end of the first epoch of 48.
    begun = checkpoint(folder)["learners"]["IndRNN 2 x 8"]
    assert len(begun["losses"]) == 60
    whole = {"checkpoint.pt", "report.json"}
    (left,) = {path.name for path in folder.iterdir()} - whole
    assert re.fullmatch(r"\.checkpoint\.\d+\.pt", left)
    assert "curves.png" in bench("--resume", folder)
    assert {path.name for path in folder.iterdir()} == whole | {"curves.png"}
    resumed, expected = checkpoint(folder), checkpoint(finished[0])
    assert torch.equal(resumed["random_state"], expected["random_state"])
    resumed, expected = (state["learners"]["IndRNN 2 x 8"] for state in (resumed, expected))
    assert resumed["losses"] == expected["losses"]
    assert resumed["validations"] == expected["validations"]
    assert report(folder)["test"] == report(finished[0])["test"]
    for name, value in expected["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    for number, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(resumed["optimizer"]["state"][number][name], value), (number, name)


def test_the_other_stacks_train(data, tmp_path):
    code = """
import sys
from bench.__main__ import main
for model in ("residual", "dense"):
    status = main(["mnist", "--model", model, "--out", sys.argv[1] + "/" + model, *sys.argv[2:]])
    assert status == 0, status
"""
    words = [tmp_path, *SMALL, "--epochs", 1, "--permuted", "--limit-train", 24]
    output = python(code, *words, FASTINDRNN_DATA=str(data))
    for model in ("residual", "dense"):
        content = report(tmp_path / model)
        assert content["images"]["train"] == content["settings"]["limit_train"] == 24
        assert content["steps"] == 3
        assert content["settings"]["permuted"] is True
        assert f"permuted MNIST, {model} IndRNN" in output
        assert len(content["validations"]) == 1
        assert content["test"]["images"] == 30


WHOLE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
WRONG = {  # what is asked: what the one line says
    "": "--data DIR, or the variable FASTINDRNN_DATA, must name the folder with MNIST's four files",
    "--data {tmp}/nowhere": f"there is no folder {{tmp}}/nowhere to read MNIST from; its files: "
    f"{WHOLE}",
    "--data {tmp}/missing": "{tmp}/missing/t10k-images-idx3-ubyte.gz is missing; it is at "
    f"{WHOLE}t10k-images-idx3-ubyte.gz",
    "--data {tmp}/torn": "{tmp}/torn/train-images-idx3-ubyte.gz is broken: cannot be unpacked: ",
    "--data {tmp}/unpacked": "train-labels-idx1-ubyte.gz is broken: cannot be read: Not a gzipped",
    "--data {tmp}/magic": "train-labels-idx1-ubyte.gz is broken: its magic number is 2051, not "
    f"2049; a whole one is at {WHOLE}train-labels-idx1-ubyte.gz",
    "--data {tmp}/short": "t10k-images-idx3-ubyte is broken: 740 bytes of data, but the header "
    "says 30 x 5 x 5",
    "--data {tmp}/long": "t10k-labels-idx1-ubyte.gz is broken: more than 30 bytes of data, but the "
    "header says 30",
    "--data {tmp}/header": "t10k-labels-idx1-ubyte.gz is broken: 4 bytes are too few for a header "
    "of 8",
    "--data {tmp}/empty": "t10k-labels-idx1-ubyte.gz is broken: it is empty",
    "--data {tmp}/digit": "t10k-labels-idx1-ubyte.gz is broken: a label is 10, but they are digits",
    "--data {tmp}/count": "t10k-labels-idx1-ubyte is broken: 29 labels for 30 images",
    "--data {tmp}/size": "t10k-images-idx3-ubyte is broken: its images are not of the training",
    "--data {tmp}/few": "19 training images are too few: a twentieth is to validate on",
    "--data {data} --model fractal": "argument --model: invalid choice: 'fractal'",
    "--data {data} --model dense --layers 3": "--layers: the dense model has blocks of 8, 6 and 4",
    "--data {data} --model dense --hidden 12": "--hidden 12: must be a multiple of 8 with dense",
    "--data {data} --gamma 0.5": "--gamma 0.5: must be at least 1",
    "--data {data} --dropout 1.5": "argument --dropout: '1.5' must be a probability from 0 to 1",
    "--data {data} --epochs 0": "argument --epochs: '0' must be a whole number, at least 1",
    "--data {data} --batch x": "argument --batch: 'x' must be a whole number, at least 1",
    "--data {data} --lr 0": "argument --lr: '0' must be a finite number above 0",
    "--data {data} --threads 0": "argument --threads: '0' must be a whole number, at least 1",
    "--data {data} --out {run}": "{run} already holds a run; --resume {run} goes on with it",
    "--resume {run} --seed 1": "--seed 1: the run to resume has 0",
    "--resume {run} --permuted": "--permuted True: the run to resume has False",
    "--resume {run} --data {tmp}/other": "{tmp}/other holds other images than the run to resume",
    "--resume {tmp}/adding": "checkpoint.pt is of python -m bench adding, not of mnist",
    "--resume {tmp}/epochs": "does not fit the model: wrong validations",
    "--resume {tmp}/series": "losses and accuracies of IndRNN 2 x 8 differ in length",
    "--resume {tmp}/nowhere": "there is no checkpoint {tmp}/nowhere/checkpoint.pt",
}


@pytest.fixture(scope="module")
def answers(data, finished, tmp_path_factory):
    """Exit status and stderr for each line of WRONG, asked in one process."""
    tmp = tmp_path_factory.mktemp("wrong")
    names = [
        "missing",
        "torn",
        "unpacked",
        "magic",
        "short",
        "long",
        "header",
        "empty",
        "digit",
        "count",
        "size",
        "few",
        "other",
    ]
    for name in names:
        write_data(tmp / name)
    (tmp / "missing" / "t10k-images-idx3-ubyte").unlink()
    packed = (data / "train-images-idx3-ubyte.gz").read_bytes()
    (tmp / "torn" / "train-images-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
    (tmp / "unpacked" / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    write(tmp / "magic", "train-labels-idx1-ubyte", idx(2051, 3, 1, 1, values=np.zeros(3)))
    images = (data / "t10k-images-idx3-ubyte").read_bytes()
    write(tmp / "short", "t10k-images-idx3-ubyte", images[:-10])
    write(tmp / "long", "t10k-labels-idx1-ubyte", idx(2049, 30, values=np.zeros(31)))
    write(tmp / "header", "t10k-labels-idx1-ubyte", b"1234")
    write(tmp / "empty", "t10k-labels-idx1-ubyte", idx(2049, 0, values=np.zeros(0)))
    write(tmp / "digit", "t10k-labels-idx1-ubyte", idx(2049, 30, values=np.full(30, 10)))
    write(tmp / "count", "t10k-labels-idx1-ubyte", idx(2049, 29, values=np.zeros(29)))
    write(tmp / "size", "t10k-images-idx3-ubyte", idx(2051, 30, 2, 5, values=np.zeros(300)))
    write(tmp / "few", "train-labels-idx1-ubyte", idx(2049, 19, values=np.zeros(19)))
    write(tmp / "few", "train-images-idx3-ubyte", idx(2051, 19, 5, 5, values=np.zeros(475)))
    write(tmp / "other", "train-labels-idx1-ubyte", idx(2049, 400, values=np.zeros(400)))
    (tmp / "adding").mkdir()
    for name, series in (("epochs", "validations"), ("series", "accuracies")):
        (tmp / name).mkdir()
        content = checkpoint(finished[0])
        del content["learners"]["IndRNN 2 x 8"][series][-2:]
        torch.save(content, tmp / name / "checkpoint.pt")
    torch.save({"format": 1, "task": "adding"}, tmp / "adding" / "checkpoint.pt")
    places = {"tmp": tmp, "run": finished[0], "data": data}
    code = """
import contextlib, io, json, sys
from bench.__main__ import main
answers = []
for line in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = main(["mnist", *line.split()])
        except SystemExit as exit:
            status = exit.code
    answers.append([status, said.getvalue()])
print(json.dumps(answers))
"""
    lines = [line.format(**places) for line in WRONG]
    return places, dict(zip(WRONG, json.loads(python(code, *lines)), strict=True))


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_promises(data, tmp_path):
    """A gigabyte of zeros behind the labels, in a process that cannot have so much memory."""
    pytest.importorskip("resource", reason="for Linux and macOS")
    folder = tmp_path / "bomb"
    write_data(folder)
    member = gzip.compress(bytes(1 << 20))  # a file of several members is their contents in a row
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(2049, 30, values=np.zeros(30))) + 1024 * member)
    code = """
import resource, sys
from pathlib import Path
from bench.arguments import UserError
from bench.tasks import idx
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20),) * 2)
try:
    idx.load(sys.argv[1])
except UserError as error:
    print(error)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    assert "more than 30 bytes of data, but the header says 30;" in python(code, folder)


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_request_gets_one_clear_line(line, answers):
    places, given = answers
    status, said = given[line]
    assert status == 2, said
    assert WRONG[line].format(**places) in said
    assert re.fullmatch(r"python -m bench.*: error: .*\n", said), "one line"


def test_parameters_and_settings_are_the_published_ones():
    """The counts; and where u starts, what decays, and what is clipped and bounded."""
    code = """
import json, torch
from bench.tasks import mnist, mnist_report
counts, facts = {}, []
for model, layers in mnist_report.PUBLISHED_PARAMETERS:
    given = {"model": model, "device": "cpu"} | ({} if model == "dense" else {"layers": layers})
    settings = mnist.merge_settings(given, None)
    learner = mnist.make_learner(settings, 784)
    counts[model + str(layers)] = sum(p.numel() for p in learner.model.parameters())
    assert "as published" in mnist_report.parameters_line(settings, learner)
    u = [p for name, p in learner.model.named_parameters() if "weight_hh" in name]
    largest = 5 ** (1 / 784)
    assert all(0 <= v.min() < 0.2 and v.max() <= largest for v in u[:-1]), "U(0, largest)"
    assert 1 / largest <= u[-1].min() and u[-1].max() <= largest
    for v in u:
        v.grad = torch.full_like(v, -1e9)
    learner.optimizer.step()
    assert all(v.grad.min() == -10 for v in u), "clipped"
    assert all(v.max() <= largest for v in u), "bounded"
    for name, p in learner.model.named_parameters():
        decays = any(p is q for q in learner.optimizer.param_groups[0]["params"])
        assert decays == (p.dim() == 2), name
    assert [g["weight_decay"] for g in learner.optimizer.param_groups] == [1e-4, 0]
    weights = [p for p in learner.model.stack.parameters() if p.dim() == 2]
    assert all(p.abs().max() <= (6 / 65 / p.shape[1]) ** 0.5 for p in weights)
bytes = torch.arange(256, dtype=torch.uint8)
assert torch.equal(mnist.pixels(bytes), torch.arange(256) / 128 - 1)
print(json.dumps(counts))
"""
    assert json.loads(python(code)) == {
        "plain6": 86_410,
        "plain12": 187_786,
        "residual5": 170_890,
        "dense18": 256_514,
    }


def test_parameter_groups_take_each_parameter_once():
    shared = nn.Linear(4, 4)
    module = nn.ModuleList(
        [
            IndRNN(3, 4, norm="batch"),
            DenseIndRNN(3, growth=2, blocks=(1,), norm="layer"),
            StepBatchNorm(4, 6),
            nn.LayerNorm((4, 4)),
            nn.RNN(4, 4),
            shared,
            shared,
        ]
    )
    decayed, kept = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    in_decayed, in_kept = ([names[id(p)] for p in group["params"]] for group in (decayed, kept))
    assert sorted(in_decayed + in_kept) == sorted(names.values())
    assert all("weight_ih" in n or n in ("4.weight_hh_l0", "5.weight") for n in in_decayed)
    assert {"0.weight_hh_l0", "0.bias_ih_l0", "0.norm_l0.weight", "3.weight"} <= set(in_kept)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight_decay must be at least 0, but is"):
            parameter_groups(module, wrong)
