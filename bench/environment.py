"""What a figure was measured on, and files that are either whole or not there."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.arguments import UserError

PACKAGES = ("fastindrnn", "torch", "numpy", "numba", "triton")
# That `python -m bench speed` compares with, where they are installed.
PEERS = (
    "accelerated-scan",
    "fla-core",
    "mamba-ssm",
    "flashrnn",
    "haste-pytorch",
    "sru",
    "minGRU-pytorch",
)


def describe(device):
    """Versions, machine and date, as they go into each JSON."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES + PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
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
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        name = found.group(1) if found else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def slug(text):
    """`text` as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_atomically(path, write):
    """Calls `write(temporary path)`, then moves the result to `path`: nobody sees half a file.

    Where it cannot be written the file of before stays, and a UserError says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or a crash could leave the new name without the content
        os.replace(temporary, path)
    except OSError as error:
        stays = "; the one from before is whole" if path.exists() else ""
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}{stays}") from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder):
    """Removes what `write_atomically` leaves in a folder when its process is killed."""
    for path in Path(folder).iterdir():
        if re.fullmatch(r"\.(checkpoint|report|curves)\.\d+\.\w+", path.name):
            path.unlink()


def write_json(path, content):
    """One line for what holds only numbers and words."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    text = re.sub(r"[\[{][^][{}]*[\]}]", lambda found: re.sub(r"\n *", " ", found[0]), text)
    write_atomically(path, lambda temporary: temporary.write_text(text))
