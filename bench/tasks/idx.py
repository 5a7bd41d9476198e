"""MNIST's four idx files, as http://yann.lecun.com/exdb/mnist/ describes the format.

A header of big-endian 32-bit numbers: a magic number (2049 for labels, 2051 for images) and the
sizes; then one byte a value.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from bench.arguments import UserError
from bench.tasks.data import VARIABLE

SOURCE = "https://storage.googleapis.com/cvdf-datasets/mnist/"
LABELS, IMAGES = 2049, 2051
LARGEST = 1 << 28  # bytes of a file; MNIST's largest has 47 million
FILES = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte": IMAGES,
    "t10k-labels-idx1-ubyte": LABELS,
}


class Broken(Exception):
    """Says what is wrong with a file."""


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
        packed = folder / f"{name}.gz"
        path = packed if packed.exists() else folder / name
        try:
            arrays[name], hashes[name] = read(path, magic)
            of = arrays[name.replace("labels-idx1", "images-idx3")]
            if len(arrays[name]) != len(of):
                raise Broken(f"{len(arrays[name])} labels for {len(of)} images")
            if magic == IMAGES and of.shape[1:] != arrays["train-images-idx3-ubyte"].shape[1:]:
                raise Broken("its images are not of the training images' size")
        except FileNotFoundError:
            raise UserError(f"{packed} is missing; it is at {SOURCE}{name}.gz") from None
        except (Broken, OSError, EOFError, zlib.error) as error:
            source = f"{SOURCE}{name}.gz"
            raise UserError(f"{path} is broken: {error}; a whole one is at {source}") from None
    images = {name: torch.from_numpy(array) for name, array in arrays.items()}
    sets = {
        part: (
            rearrange(images[f"{part}-images-idx3-ubyte"], "n h w -> n (h w)"),
            images[f"{part}-labels-idx1-ubyte"].long(),
        )
        for part in ("train", "t10k")
    }
    return sets, hashes


def read(path, magic):
    """The values of a file, packed or not, and the hash of its content: no more of it is read than
    the sizes in its header promise, and one byte, whatever it unpacks to."""
    count = 4 if magic == IMAGES else 2
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = file.read(4 * count)
        if len(header) < 4 * count:
            raise Broken(f"{len(header)} bytes are too few for a header of {4 * count}")
        found, *sizes = np.frombuffer(header, ">u4").tolist()
        if found != magic:
            raise Broken(f"its magic number is {found}, not {magic}")
        promised, shape = math.prod(sizes), " x ".join(map(str, sizes))
        if not 0 < promised <= LARGEST:
            raise Broken(f"its header says {shape}")
        content = file.read(promised + 1)
    if len(content) != promised:
        given = f"more than {promised}" if len(content) > promised else len(content)
        raise Broken(f"{given} bytes of data, but the header says {shape}")
    values = np.frombuffer(bytearray(content), np.uint8).reshape(sizes)
    if magic == LABELS and values.max() > 9:
        raise Broken(f"a label is {values.max()}, but they are digits")
    return values, hashlib.sha256(header + content).hexdigest()
