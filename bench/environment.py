"""What a figure was measured on, and files that are either whole or not there."""

import contextlib
import ctypes
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.arguments import UserError

PACKAGES = ("fastindrnn", "torch", "numpy", "numba", "triton")


def describe(device, peers=()):
    """Versions (of `peers` too, where they are installed), machine and date, for a JSON."""
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *peers):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions["torch"] = torch.__version__  # says also what it was built for
    if torch.device(device).type == "cuda":
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def device_name(device):
    """The processor's own name for itself, and how many threads PyTorch uses of it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        name = found.group(1) if found else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def load_in_words(environment):
    """How much other work there was, in words."""
    average = environment["load_average"]  # None where the system has none
    return "load not known" if average is None else f"load average {average:.1f} at the start"


def keep_freed_memory():
    """Keeps what a call frees for the next one, where the C library is GNU's.

    It gives large blocks back to the system at once, and the page faults of taking them again can
    be half the time of a call, and most of its scatter: 7 training steps of `nn.LSTM` at
    (32, 4096, 128) took 861 to 1,933 ms, median 1,027; without these faults 348 to 592 ms but for
    the first, median 506 (2 threads of an AMD EPYC that others used too).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: none of the heap is given back
        mallopt(-4, 0)  # M_MMAP_MAX: no block lies outside of it


def give_back_freed_memory():
    """Gives back what `keep_freed_memory` has kept so far."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def write(path, content):
    """Writes text or bytes beside the file, then moves them to `path`: nobody sees half a file.

    Where it cannot be written the file of before stays, and a UserError says so.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the new name without the content
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        stays = "; the one from before is whole" if path.exists() else ""
        raise UserError(f"{path} cannot be written: {error.strerror or error}{stays}") from None


def replace_between(page, begin, end, text):
    """The page with the text between its two marks."""
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise UserError(f"the page has no place for results: it needs {begin} and {end}")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def write_json(path, content):
    """One line for a list of numbers and words, and for what holds only such things."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    flat = r"\{[^{}]*\}|\[[^][{}]*\]"
    write(path, re.sub(flat, lambda found: re.sub(r"\n *", " ", found[0]), text))


def new_figure(width, height):
    """An empty figure; None, and a line that says so, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path, figure, **options):
    """In the format that the ending of the name says."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:], **options)
    write(path, drawn.getvalue())
