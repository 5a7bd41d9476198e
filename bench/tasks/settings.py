"""The settings of a run: from the command line, and from the checkpoint of a run to resume.

A task has `SETTINGS`, name: (default, type, help), and `FLAGS`, name: help.
"""

import argparse
import time
from pathlib import Path

import torch

from bench import arguments
from bench.arguments import UserError


def add_arguments(parser, task, settings, flags):
    """Options that are in the parsed arguments only if they were given, --out and --resume."""
    for name, (default, parse, meaning) in settings.items():
        shown = meaning
        if default is not None:
            word = f"{default:g}" if isinstance(default, (int, float)) else default
            shown = f"{meaning} (default: {word})"
        options = {"choices": parse} if isinstance(parse, tuple) else {"type": parse}
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=shown, **options)
    either = argparse.BooleanOptionalAction
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action=either, default=argparse.SUPPRESS, help=meaning)
    results = parser.add_mutually_exclusive_group()
    results.add_argument("--out", type=Path, metavar="DIR", help=f"default: runs/{task}-...")
    results.add_argument("--resume", type=Path, metavar="DIR", help="go on with a stopped run")


def merge(settings, flags, may_change, given, checkpoint):
    """Defaults, under the settings of the resumed run, under what was given."""
    merged = {name.replace("-", "_"): default for name, (default, _, _) in settings.items()}
    merged |= {name.replace("-", "_"): False for name in flags}
    merged["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    given = {name: value for name, value in given.items() if name in merged}
    if checkpoint:
        merged |= checkpoint["settings"]
        for name, value in given.items():
            if name not in may_change and value != merged[name]:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: the run to resume has {merged[name]}")
        try:
            arguments.device(merged["device"])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"the run to resume needs its device: {error}") from None
    return merged | given


def new_folder(folder, name):
    """The folder for the results, made if need be; it must not hold another run."""
    folder = folder or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"{folder} already holds a run; --resume {folder} goes on with it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder
