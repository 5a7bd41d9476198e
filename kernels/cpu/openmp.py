"""Compiled loops on the OpenMP team that torch's own operators run on.

The way in is `GOMP_parallel`, which both GNU's and LLVM's runtime export. A second pool would fight
with torch's threads, which spin for a while after each operator: a scan straight after a Linear of
(32, 1000, 128) took 1.1 ms on a pool of its own and 0.56 ms on the team, with 2 cores. A team
belongs to the thread that calls, so that concurrent calls are safe. After a fork the runtime's
threads are gone: the child runs on one thread, as torch's DataLoader workers do. So does everyone
where torch's runtime does not export the function (Windows).

The functions are looked up in `torch._C` and in all that the linker loaded with it, so that they
are of torch's own runtime wherever that lies, in the wheel, in conda's folder or the system's.
"""

import ctypes
import os

import llvmlite.binding as llvm
import torch
from numba import types

# Below this many elements a second thread costs more than it saves; torch's own operators use the
# same number.
_SERIAL = 32768


class _Team:
    """torch's OpenMP runtime, or a stand-in of one thread."""

    def __init__(self):
        self.forked = False
        try:
            library = ctypes.CDLL(torch._C.__file__)
            self.parallel = library.GOMP_parallel
            self.functions = library.omp_get_thread_num, library.omp_get_num_threads
        except (OSError, AttributeError):
            integer = ctypes.CFUNCTYPE(ctypes.c_int)
            self.parallel = None
            self.functions = integer(lambda: 0), integer(lambda: 1)
        else:
            address, number = ctypes.c_void_p, ctypes.c_uint
            self.parallel.argtypes = [address, address, number, number]
            self.parallel.restype = None
        for name, function in zip(("thread_num", "num_threads"), self.functions, strict=True):
            llvm.add_symbol(f"fastindrnn_{name}", ctypes.cast(function, ctypes.c_void_p).value)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self):
        self.forked = True

    def size(self, elements):
        if elements < _SERIAL or self.forked or self.parallel is None:
            return 1
        return torch.get_num_threads()


class Loop:
    """A numba cfunc of one pointer, to be called with less ado than numba's own object: its
    properties are made anew each time they are asked for."""

    def __init__(self, function):
        self.function = function  # keeps the machine code alive
        self.address = function.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


_team = _Team()

# For compiled code: the calling thread's number in its team, and how many there are.
thread_num = types.ExternalFunction("fastindrnn_thread_num", types.int32())
num_threads = types.ExternalFunction("fastindrnn_num_threads", types.int32())


def found():
    """Which threads the loops run on, in words."""
    if _team.parallel is None:
        return "one thread: torch's OpenMP was not found"
    if _team.forked:
        return "one thread: the process was forked"
    return "torch's OpenMP threads"


def size(elements):
    """How many threads are worth while for so many elements: for a few, one."""
    return _team.size(elements)


def run(loop, arguments, threads):
    """So many threads of the team call a `Loop` with the address of the bytes `arguments`, and take
    their shares by `thread_num` and `num_threads`."""
    if threads == 1:
        loop.call(arguments)
    else:
        _team.parallel(loop.address, arguments, threads, 0)
