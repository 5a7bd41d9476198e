"""The folder of a run: held against other runs; and how Ctrl-C stops one."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from bench.arguments import UserError

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None


@contextlib.contextmanager
def stop_requests():
    """Yields a list, empty until the first Ctrl-C; a second Ctrl-C ends the program at once."""
    requests = []

    def request(number, frame):
        requests.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)


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


def folder_of(args):
    """The folder for the results: that of the run to resume, or a new one, which is then held."""
    if args.resume is not None:
        return args.resume
    folder = args.out or Path("runs") / f"{args.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    hold(folder, args.held)
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"{folder} already holds a run; --resume {folder} goes on with it")
    return folder
