"""Compiled loops on the OpenMP threads that torch's own operators run on.

A loop is started by `GOMP_parallel`, which GNU's and LLVM's OpenMP runtimes both export. A second
pool of threads would compete with torch's threads, which spin for a while after each operator: on 2
cores, a scan right after a Linear of (32, 1000, 128) took 1.1 ms on a pool of its own and 0.56 ms
on torch's threads. Each calling thread has its own OpenMP threads, so that concurrent calls are
safe. After a fork the OpenMP threads are gone, and the child runs the loops on one thread, as
torch's DataLoader workers do. One thread it is too where torch's runtime does not export
`GOMP_parallel`, as on Windows.

The functions are looked up in `torch._C` and in the libraries that the linker loaded with it. They
are then those of the runtime that torch uses, wherever it lies: in the wheel, in conda's folder or
in the system's.
"""

import ctypes
import os

import llvmlite.binding as llvm
import torch
from numba import types

# With fewer elements a second thread costs more than it saves; torch's own operators use the same
# number.
_LEAST_PARALLEL_ELEMENTS = 32768


class _Runtime:
    """torch's OpenMP runtime, or one thread where `parallel` is None."""

    def __init__(self):
        self.forked = False
        try:
            library = ctypes.CDLL(torch._C.__file__)
            self.parallel = library.GOMP_parallel
            self.thread_num = library.omp_get_thread_num
            self.num_threads = library.omp_get_num_threads
        except (OSError, AttributeError):
            integer = ctypes.CFUNCTYPE(ctypes.c_int)
            self.parallel = None
            self.thread_num, self.num_threads = integer(lambda: 0), integer(lambda: 1)
        else:
            address, number = ctypes.c_void_p, ctypes.c_uint
            self.parallel.argtypes = [address, address, number, number]
            self.parallel.restype = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self):
        self.forked = True


class Loop:
    """The machine code of a numba cfunc that takes one pointer.

    A numba CFunc makes its properties `address` and `ctypes` anew at each access; here they are
    made once.
    """

    def __init__(self, function):
        self.function = function  # keeps the machine code alive
        self.address = function.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


def _address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


_runtime = _Runtime()

# For compiled code: the number of the thread that runs it, and how many threads run it at once.
llvm.add_symbol("fastindrnn_thread_num", _address(_runtime.thread_num))
llvm.add_symbol("fastindrnn_num_threads", _address(_runtime.num_threads))
thread_num = types.ExternalFunction("fastindrnn_thread_num", types.int32())
num_threads = types.ExternalFunction("fastindrnn_num_threads", types.int32())


def threads():
    """Which threads the loops run on, in words."""
    if _runtime.parallel is None:
        return "one thread: torch's OpenMP was not found"
    if _runtime.forked:
        return "one thread: the process was forked"
    return "torch's OpenMP threads"


def thread_count(elements):
    """How many threads a tensor of so many elements is worth: torch's number, or 1."""
    if elements < _LEAST_PARALLEL_ELEMENTS or _runtime.forked or _runtime.parallel is None:
        return 1
    return torch.get_num_threads()


def run(loop, arguments, count):
    """Runs a `Loop` on `count` threads at once, each with a pointer to the same `arguments`.

    By `thread_num` and `num_threads` each finds out which part of the work is its own.
    """
    pointer = ctypes.byref(arguments)
    if count == 1:
        loop.call(pointer)
    else:
        _runtime.parallel(loop.address, pointer, count, 0)
