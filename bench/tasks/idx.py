"""MNIST's four idx files, as http://yann.lecun.com/exdb/mnist/ describes the format.

A header of big-endian 32-bit numbers: a magic number (2049 for labels, 2051 for images) and the
sizes; then one byte a value.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from bench.arguments import UserError

VARIABLE = "FASTINDRNN_DATA"
SOURCE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
LABELS, IMAGES = 2049, 2051
PIECE = 1 << 20  # bytes unpacked at once
FILES = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte": IMAGES,
    "t10k-labels-idx1-ubyte": LABELS,
}


def load(folder):
    """({"train": (images, labels), "t10k": ...}, {file: SHA-256 of its content}).

    Images are uint8 (count, height * width), labels int64 (count,).
    """
    folder = folder or os.environ.get(VARIABLE)
    if not folder:
        raise UserError(
            f"--data DIR, or the variable {VARIABLE}, must name the folder with MNIST's four files "
            f"({', '.join(f'{name}.gz' for name in FILES)}); they are at {SOURCE}"
        )
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} to read MNIST from; its files: {SOURCE}")
    arrays, hashes = {}, {}
    for name, magic in FILES.items():
        path, content = read(folder, name, magic)
        arrays[name] = parse(path, content, magic)
        hashes[name] = hashlib.sha256(content).hexdigest()
    sets = {}
    for part in ("train", "t10k"):
        images, labels = (arrays[name] for name in FILES if name.startswith(part))
        if len(images) != len(labels):
            raise broken(
                folder / f"{part}-labels-idx1-ubyte",
                f"{len(labels)} labels for {len(images)} images",
            )
        sets[part] = (
            torch.from_numpy(images.reshape(len(images), -1).copy()),
            torch.from_numpy(labels.astype(np.int64)),
        )
    if sets["train"][0].shape[1] != sets["t10k"][0].shape[1]:
        name = "t10k-images-idx3-ubyte"
        raise broken(folder / name, "its images are not of the training images' size")
    return sets, hashes


def read(folder, name, magic):
    """The path of a file, packed or not, and its unpacked content: no more of it than the sizes in
    its header and one byte, whatever it unpacks to."""
    packed, plain = folder / f"{name}.gz", folder / name
    path = packed if packed.exists() else plain
    try:
        with (gzip.open if path == packed else open)(path, "rb") as file:
            content = bytearray(file.read(header_bytes(magic)))
            found, *sizes = header(content) or [None]
            wanted = len(content) + math.prod(sizes) + 1 if found == magic else 0
            while len(content) < wanted:
                more = file.read(min(PIECE, wanted - len(content)))
                if not more:
                    break
                content += more
            return path, bytes(content)
    except FileNotFoundError:
        raise UserError(f"{packed} is missing; it is at {SOURCE}{name}.gz") from None
    except OSError as error:  # gzip.BadGzipFile is one
        raise broken(path, f"cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise broken(path, f"cannot be unpacked: {error}") from None


def header_bytes(magic):
    return 16 if magic == IMAGES else 8


def header(content):
    """The numbers of a header: the magic one and the sizes."""
    count = len(content) // 4
    return struct.unpack(f">{count}I", content[: 4 * count])


def parse(path, content, magic):
    """The values as an array of the sizes in the header."""
    begin = header_bytes(magic)
    if len(content) < begin:
        raise broken(path, f"{len(content)} bytes are too few for a header of {begin}")
    found, *sizes = header(content[:begin])
    if found != magic:
        raise broken(path, f"its magic number is {found}, not {magic}")
    given, promised = len(content) - begin, math.prod(sizes)
    if given != promised:
        shape = " x ".join(map(str, sizes))
        said = f"{given}" if given < promised else f"more than {promised}"
        raise broken(path, f"{said} bytes of data, but the header says {shape}")
    if not math.prod(sizes):
        raise broken(path, "it is empty")
    values = np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)
    if magic == LABELS and values.max() > 9:
        raise broken(path, f"a label is {values.max()}, but they are digits")
    return values


def broken(path, reason):
    name = path.name.removesuffix(".gz")
    return UserError(f"{path} is broken: {reason}; a whole one is at {SOURCE}{name}.gz")
