"""`python -m bench ...` in the process of the tests, and small data for it."""

import contextlib
import gzip
import io
import json
import re
import struct

import numpy as np
import pytest
import torch

from bench.__main__ import main
from bench.speed import command
from bench.tasks import run as run_of_task


def run(*words, status=0):
    """What the command prints on standard output and on standard error."""
    printed = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (run_of_task, command):  # would last until the end of all tests
            patch.setattr(module, "keep_freed_memory", lambda: None)
        stack.enter_context(contextlib.redirect_stdout(printed[0]))
        stack.enter_context(contextlib.redirect_stderr(printed[1]))
        try:
            found = main([*map(str, words)])
        except SystemExit as exit:
            found = exit.code
        finally:
            torch.set_num_threads(threads)
    output, error = (stream.seek(0) or stream.read() for stream in printed)
    assert found == status, output + error
    return output, error


def refusal(*words):
    """The one line of a command that cannot do what is asked."""
    _, error = run(*words, status=2)
    assert re.fullmatch(r"python -m bench.*: error: .*\n", error)
    return error


SMALL = ["--hidden", "8", "--device", "cpu", "--threads", "1", "--log-every", "10"]
ADDING = ["adding", *SMALL, "--length", "20", "--batch", "4"]
SIDE = 5
MNIST = {  # name: magic number, images or labels, whether the file is packed
    "train-images-idx3-ubyte": (2051, 400, True),
    "train-labels-idx1-ubyte": (2049, 400, True),
    "t10k-images-idx3-ubyte": (2051, 30, False),
    "t10k-labels-idx1-ubyte": (2049, 30, True),
}


def idx_file(magic, *sizes, values=0):
    header = struct.pack(f">{1 + len(sizes)}I", magic, *sizes)
    return header + np.broadcast_to(values, sizes).astype(np.uint8).tobytes()


def write(folder, name, content):
    if MNIST[name][2]:
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / name).write_bytes(content)


def write_data(folder):
    """Noise, with a bright row for each of the digits: something that can be learnt."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("train", 400), ("t10k", 30)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 50, (count, SIDE, SIDE))
        images[np.arange(count), labels // 2] += 100 + 100 * (labels % 2)[:, None]
        content = idx_file(2051, count, SIDE, SIDE, values=images)
        write(folder, f"{part}-images-idx3-ubyte", content)
        write(folder, f"{part}-labels-idx1-ubyte", idx_file(2049, count, values=labels))
    words = rng.choice(["to ", "be ", "or ", "not\n"], 1000)
    (folder / "tinyshakespeare.txt").write_text("".join(words))
    write_series(folder, rng)
    write_sentences(folder, rng)
    write_characters(folder, rng)
    return folder


def write_series(folder, rng):
    """What the tasks on series read, in small: a wave, two vowels, two actions of three people."""
    months = [f"{1949 + month // 12}-{1 + month % 12:02}" for month in range(84)]
    passengers = [100 + month + 30 * np.sin(month * np.pi / 6) for month in range(84)]
    lines = [f"{month},{number:.0f}" for month, number in zip(months, passengers, strict=True)]
    (folder / "Airline.csv").write_text("\n".join(["Date,Passengers", *lines, ""]))
    for part, count in (("TRAIN", 10), ("TEST", 6)):
        rows = [
            (rng.normal(index % 2, 0.1, (3, 5 + index)), 1 + index % 2) for index in range(count)
        ]
        (folder / f"JapaneseVowels_{part}.ts").write_text(ts_file(rows))
    for person in (1, 2, 3):  # the third is for the test
        for action in (1, 7):
            for repetition in (1, 2):
                name = f"S001C001P{person:03}R{repetition:03}A{action:03}.skeleton"
                joints = rng.normal(action, 0.1, (22 + repetition, 25, 3))
                text = skeleton_file([{"72057594037944738": frame} for frame in joints])
                (folder / name).write_text(text)


def ts_file(rows):
    """Of pairs: values (channels, T) and a label."""
    lines = [
        ":".join([*(",".join(f"{value:.6f}" for value in part) for part in values), str(label)])
        for values, label in rows
    ]
    return "\n".join(["# a comment: not data", "@problemName Small", "@data", *lines, ""])


def skeleton_file(frames):
    """Of {tracking number: joints (25, 3)} for each frame: the public format of NTU RGB+D, in which
    the words that stand for neither are 9 and 0.5."""
    lines = [len(frames)]
    for bodies in frames:
        lines.append(len(bodies))
        for number, joints in bodies.items():
            lines += [f"{number} 9 9 9 9 9 9 0.5 0.5 9", len(joints)]
            lines += [" ".join([*map(str, joint), *["0.5"] * 8, "9"]) for joint in joints]
    return "\n".join(map(str, lines)) + "\n"


def write_sentences(folder, rng):
    """Words that end in their tag."""
    for part, count in (("train", 40), ("dev", 10), ("test", 10)):
        sentences = []
        for length in rng.integers(1, 9, count):
            tags = rng.choice(["NOUN", "VERB", "ADP"], length)
            words = [
                f"{first}{tag.lower()}\t{tag}\n"
                for first, tag in zip("Abcdefgh", tags, strict=False)
            ]
            sentences.append("".join(words))
        (folder / f"ewt-{part}.tsv").write_text("\n".join(sentences))


def write_characters(folder, rng):
    """Two strokes each, of moves to the right; the first row is where a character begins."""
    parts = {}
    for part, count in (("train", 40), ("valid", 10), ("test", 10)):
        parts[part] = np.empty(count, object)
        for index, length in enumerate(rng.integers(3, 9, count)):
            rows = np.zeros((length, 3), np.int16)
            rows[1:, 0] = rng.integers(50, 60, length - 1)
            rows[[length // 2, -1], 2] = 1
            parts[part][index] = rows
    np.savez(folder / "omniglot_stroke3.npz", **parts)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def report(folder):
    return json.loads((folder / "report.json").read_text())


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
