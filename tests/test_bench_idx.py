"""MNIST's files: what is wrong with one is said in one line, and nothing is written."""

import gzip
import struct
import tracemalloc

import pytest
from bench_command import MNIST, SIDE, SMALL, idx_file, refusal, run, write, write_data

from bench.arguments import UserError
from bench.tasks import idx


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    data = write_data(folder / "data")
    run("mnist", *SMALL, "--layers", 1, "--epochs", 1, "--data", data, "--out", folder / "run")
    return folder / "run"


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
