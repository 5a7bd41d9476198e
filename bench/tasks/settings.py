"""The settings of a run: from the command line, and from the checkpoint of a run to resume.

A task has `SETTINGS`, name: (default, type, help), and `FLAGS`, name: help.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from bench import arguments
from bench.arguments import UserError
from bench.environment import remove_leftovers

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None


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
        check(settings, flags, merged, checkpoint["settings"])
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


def check(settings, flags, merged, stored):
    """A UserError unless what a checkpoint holds could have been given on the command line."""
    kinds = {name.replace("-", "_"): parse for name, (_, parse, _) in settings.items()}
    for name, default in merged.items():
        value, parse = stored.get(name), kinds.get(name)
        if parse is None:
            fits = isinstance(value, bool)
        elif isinstance(parse, tuple):
            fits = value in parse
        elif value is None:
            fits = default is None and name in stored
        else:
            try:
                parsed = parse(str(value))
                fits = (str(parsed) if isinstance(parsed, Path) else parsed) == value
            except argparse.ArgumentTypeError:
                # Of another machine: the caller says what is wrong with it.
                fits = name == "device" and isinstance(value, str)
        if not fits:
            raise UserError(f"the run to resume has settings with a wrong {name}: {value!r}")


def hold(folder, held):
    """Keeps other runs out of a folder until `held`, an ExitStack, is closed; the system does when
    the process ends. Removes what a killed run left in it.

    Raises:
        UserError: another run has it.
    """
    if not folder.is_dir():
        return
    if fcntl is not None:
        try:
            folder_fd = os.open(folder, os.O_RDONLY)
            held.callback(os.close, folder_fd)
            fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another run") from None
        except OSError:
            return  # a file system without locks: it may have another run, leave its files
        remove_leftovers(folder)


def new_folder(folder, name, held):
    """The folder for the results, made if need be and held; it must not have another run."""
    folder = folder or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    hold(folder, held)
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"{folder} already holds a run; --resume {folder} goes on with it")
    return folder
