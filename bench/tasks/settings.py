"""The settings of a run, and its folder.

A task has `SETTINGS`, name: (default, type, help), `FLAGS`, name: help, and `MAY_CHANGE`, the names
that may differ when a run is resumed: those that do not decide what is trained.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from bench import arguments
from bench.arguments import UserError
from bench.tasks.training import load_checkpoint

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None


def add_arguments(parser, settings, flags):
    """Options that are in the parsed arguments only if they were given, --out and --resume."""
    for name, (default, parse, meaning) in settings.items():
        shown = meaning if default is None else f"{meaning} (default: {default})"
        options = {"choices": parse} if isinstance(parse, tuple) else {"type": parse}
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=shown, **options)
    either = argparse.BooleanOptionalAction
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action=either, default=argparse.SUPPRESS, help=meaning)
    results = parser.add_mutually_exclusive_group()
    results.add_argument("--out", type=Path, metavar="DIR", help="folder to make and write into")
    results.add_argument("--resume", type=Path, metavar="DIR", help="go on with a stopped run")


def merge(task, args):
    """(Settings, checkpoint): the defaults, under those of the run to resume, under those given.
    The checkpoint is None if no run is resumed; otherwise its folder is held."""
    defaults = {name: default for name, (default, _, _) in task.SETTINGS.items()}
    defaults |= dict.fromkeys(task.FLAGS, False)
    merged = {name.replace("-", "_"): default for name, default in defaults.items()}
    merged["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    given = {name: value for name, value in vars(args).items() if name in merged}
    if args.resume is None:
        return merged | given, None
    hold(args.resume, args.held)
    checkpoint = load_checkpoint(args.resume / "checkpoint.pt", args.command)
    merged |= checkpoint["settings"]
    for name, value in given.items():
        if name not in task.MAY_CHANGE and value != merged[name]:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {value}: the run to resume has {merged[name]}")
    try:
        arguments.device(merged["device"])
    except argparse.ArgumentTypeError as error:
        raise UserError(f"the run to resume needs its device: {error}") from None
    return merged | given, checkpoint


def hold(folder, held):
    """Keeps other runs out of a folder until `held`, an ExitStack, is closed."""
    if fcntl is None or not folder.is_dir():
        return
    descriptor = os.open(folder, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another run") from None
    except OSError:
        return  # a file system without locks


def folder_of(args, name):
    """The folder for the results: that of the run to resume, or a new one, which is then held."""
    if args.resume is not None:
        return args.resume
    folder = args.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    hold(folder, args.held)
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"{folder} already holds a run; --resume {folder} goes on with it")
    return folder
