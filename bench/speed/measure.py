"""One case measured: what is ours is checked, then all candidates are timed in turn.

Each candidate gives a row: its time in every round, or a word on why there is none.
"""

import contextlib
import gc
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.benchmark import Timer

from bench.speed.candidates import LAYER, QUICK, SCAN, TrainingStep, candidates
from bench.speed.cases import (
    CALL,
    CALL_SIZES,
    CALL_WITH_GRADIENTS,
    SCAN_BACKWARD,
    THREAD_SIZES,
    THREADS,
    TRAINING,
    Case,
    Inputs,
)
from bench.speed.checks import Wrong, check, check_layer, check_scan
from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.functional import indrnn, indrnn_scan

LEAST_ROUNDS = 5
STEP, CELL, FUNCTION, PLAIN = "IndRNN.step", "IndRNNCell", "indrnn", "nn.Linear + relu"
CALLS = 200  # of a sample of a call that takes microseconds
FLUSHED = 1 << 30  # bytes that are zeroed before each sample on a GPU: more than any L2 cache holds


class Skipped(Exception):
    """Says in a few words why something is not called."""


class Clock:
    """`clock(function)`: the seconds of one call. What the call returns is freed outside of them.

    CPU: wall time. GPU: between two CUDA events around the call. Before it 1 GiB is zeroed: nobody
    finds its input in the L2 cache, and the host is ahead by the time of zeroing, so that what
    launching costs counts only as far as it exceeds that.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        if self.device.type == "cuda":
            self.flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)

    def __call__(self, function):
        if self.device.type != "cuda":
            began = time.perf_counter()
            result = function()
            ended = time.perf_counter()
            del result
            return ended - began
        with torch.cuda.device(self.device):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self.flushed.zero_()
            began.record()
            result = function()
            ended.record()
            ended.synchronize()
        del result
        return began.elapsed_time(ended) / 1e3


def interleave(functions, rounds, clock):
    """functions: {name: function without arguments}. Returns {name: its seconds in each round}, or
    what it raised.

    Every round calls each function once, beginning with another one each time. What slows one then
    slows all of them alike, and they are compared by the ratio of their times within a round.
    """
    results = {name: [] for name in functions}
    for number in range(rounds):
        names = [name for name in functions if isinstance(results[name], list)]
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            try:
                results[name].append(clock(functions[name]))
            except Exception as error:  # whatever other people's code may raise
                results[name] = error.with_traceback(None)
    return results


def held_bytes(step):
    """The most bytes that a `TrainingStep` holds, beside its input and its parameters.

    GPU: the most that PyTorch had allocated, less what it had before. CPU: what autograd saved for
    the backward, each storage once, and the output; gradients come on top.
    """
    device = step.grad.device
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - allocated
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output, _ = step()
    keep(output)
    for leaf in step.leaves:
        held.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(held.values())


def free_bytes(device):
    """Memory that can be had; on a CPU as Linux says it, without end where nobody says it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return math.inf


class Limits(NamedTuple):
    rounds: int  # at most; LEAST_ROUNDS at least
    seconds: float  # for all rounds of a case, where LEAST_ROUNDS leave any
    call: float  # the longest call of somebody else's layer, in seconds


def rows_of(case, results, held=None):
    """A row for each candidate: its milliseconds in every round, or a word on what it raised."""
    rows = []
    for name, found in results.items():
        row = dict(zip("BTN", case.sizes, strict=True))
        row |= {"dtype": case.dtype, "what": case.what, "name": name}
        if not isinstance(found, Exception):
            row["ms"] = [float(f"{1e3 * seconds:.4g}") for seconds in found]
            row |= {"bytes": held[name]} if name in (held or {}) else {}
        else:
            said = (str(found).strip().splitlines() or [""])[0][:200]
            if isinstance(found, (Skipped, Wrong)):
                row[type(found).__name__.lower()] = said
            else:
                row["error"] = f"{type(found).__name__}: {said}"
        rows.append(row)
    return rows


def measure(cases, device, clock, limits):
    """Yields the rows of each case; the cases have their sizes and dtype in common."""
    sizes, dtype = cases[0].sizes, getattr(torch, cases[0].dtype)
    needed = 8 * math.prod(sizes) * dtype.itemsize  # x, its gradient and what is made of them
    if needed > free_bytes(device):
        too_large = Skipped(f"needs about {needed / 1e9:.0f} GB of memory")
        for case in cases:
            yield rows_of(case, dict.fromkeys(candidates(case, device), too_large))
        return
    inputs = Inputs.draw(sizes, dtype, device)
    for case in cases:
        results, functions, seconds, held = {}, {}, 0.0, {}
        for name, bind in candidates(case, device).items():
            results[name] = []
            try:
                function = admit(case, name, bind, inputs, clock, limits.call)
                if isinstance(function, TrainingStep):
                    held[name] = held_bytes(function)
                else:
                    clock(function)  # warms up
                seconds += clock(function)
                functions[name] = function
            except Exception as error:  # whatever other people's code may raise
                results[name] = error.with_traceback(None)  # which would keep its tensors
        rounds = min(limits.rounds, max(LEAST_ROUNDS, int(limits.seconds / max(seconds, 1e-9))))
        yield rows_of(case, results | interleave(functions, rounds, clock), held)
        del functions
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def admit(case, name, bind, inputs, clock, limit):
    """The function to time. Ours is checked; of somebody else's layer a call with a 32nd of the
    time steps comes first, so that nothing is called that takes much longer than `limit` seconds.
    """
    if name not in QUICK:
        steps = max(1, case.sizes[1] // 32)
        function = bind(inputs.head(steps))
        clock(function)  # may compile something
        if clock(function) * case.sizes[1] / steps > limit:
            raise Skipped(f"a call takes more than {limit:g} s")
    torch.manual_seed(0)
    function = bind(inputs)
    if name == SCAN:
        check_scan(inputs, case.what == SCAN_BACKWARD)
    if name == LAYER:
        check_layer(function.module, inputs, case.what == TRAINING)
    return function


def measure_calls(device, rounds):
    """Yields rows of one time step of one sequence: Python, dispatcher and launch, little else."""
    N = CALL_SIZES[-1]
    inputs = Inputs.draw(CALL_SIZES, torch.float32, device)
    rnn, cell = IndRNN(N, N, batch_first=True).to(device), IndRNNCell(N, N).to(device)
    linear = nn.Linear(N, N).to(device)
    parts = rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.weight_hh_l0
    x, x_t = inputs.x, inputs.x[:, 0]
    cell.load_state_dict(rnn.state_dict())
    functions = {
        LAYER: lambda: rnn(x)[0],
        STEP: lambda: rnn.step(x_t)[0],
        CELL: lambda: cell(x_t),
        FUNCTION: lambda: indrnn(x, *parts)[0],
        PLAIN: lambda: torch.relu(linear(x)),
    }

    def clock(function):
        timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
        return timer.timeit(CALLS).mean

    for what, training in ((CALL, False), (CALL_WITH_GRADIENTS, True)):
        case = Case(CALL_SIZES, "float32", what)
        with torch.set_grad_enabled(training):
            try:
                check_layer(rnn, inputs, training)
                for name in (STEP, CELL, FUNCTION):
                    check(name, functions[name]().detach().view_as(x), rnn(x)[0].detach().double())
            except Wrong as wrong:
                yield rows_of(case, {LAYER: wrong})
            else:
                yield rows_of(case, interleave(functions, rounds, clock))


def measure_threads(rounds, sizes=THREAD_SIZES):
    """Yields rows of the recurrence on 1, 2, 4, ... threads of a CPU, up to its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    case, inputs = Case(sizes, "float32", THREADS), Inputs.draw(sizes, torch.float32, "cpu")

    def clock(count):
        names = {"scan": indrnn_scan, "a": inputs.x, "u": inputs.u}
        return Timer("scan(a, u)", globals=names, num_threads=count).timeit(1).mean

    threads = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            check_scan(inputs, training=False)
    except Wrong as wrong:
        yield rows_of(case, {SCAN: wrong})
        return
    finally:
        torch.set_num_threads(threads)
    functions = {f"{count} thread{'s' if count > 1 else ''}": count for count in counts}
    yield rows_of(case, interleave(functions, rounds, clock))
