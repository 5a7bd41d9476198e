"""One case measured: what is ours is checked, then all candidates are timed in turn.

Each candidate gives a row: its time in every round, or a word on why there is none.
"""

import contextlib
import gc
import math
import time
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from bench.environment import give_back_freed_memory
from bench.speed.candidates import OURS, QUICK, bind, candidates
from bench.speed.cases import CALL, CALL_WITH_GRADIENTS, SCAN_BACKWARD, TRAINING, Inputs
from bench.speed.checks import Wrong, check

LEAST_ROUNDS = 5
CALLS = 200  # of a sample of a call that takes microseconds
FLUSHED = 1 << 30  # bytes that are zeroed before each sample on a GPU: more than any L2 cache holds


class Skipped(Exception):
    """Says in a few words why something is not called."""


class Clock:
    """`clock(function)`: the seconds of one call.

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
            _result = function()  # freed when the time is taken
            return time.perf_counter() - began
        with torch.cuda.device(self.device):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self.flushed.zero_()
            began.record()
            function()
            ended.record()
            ended.synchronize()
            return began.elapsed_time(ended) / 1e3


def time_of_call(function):
    """The seconds of one call that takes microseconds, as the mean of many."""
    timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
    return timer.timeit(CALLS).mean


def interleave(functions, rounds, clock, seconds=math.inf):
    """functions: {name: function without arguments}. Returns {name: its seconds in each round}, or
    what it raised. After LEAST_ROUNDS no round is begun when `seconds` are over.

    Every round calls each function once, beginning with another one each time. What slows one then
    slows all of them alike, and they are compared by the ratio of their times within a round.
    """
    results, began = {name: [] for name in functions}, time.monotonic()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() - began > seconds:
            break
        names = [name for name in functions if isinstance(results[name], list)]
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            try:
                results[name].append(clock(functions[name]))
            except Exception as error:  # whatever other people's code may raise
                results[name] = error.with_traceback(None)
    return results


def held_bytes(step):
    """The most bytes that a training step (`Gradients`) holds, beside its input and its parameters.

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


def measure(cases, device, clock, *, rounds, seconds, limit):
    """Yields the rows of each case; the cases have their sizes and dtype in common.

    rounds: at most; LEAST_ROUNDS at least, and more while `seconds` are not over. limit: seconds
    that a call of somebody else's layer may take.
    """
    sizes, dtype = cases[0].sizes, getattr(torch, cases[0].dtype)
    give_back_freed_memory()
    needed = 8 * math.prod(sizes) * dtype.itemsize  # x, its gradient and what is made of them
    inputs = Inputs.draw(sizes, dtype, device) if needed <= free_bytes(device) else None
    for case in cases:
        results, functions, held = {}, {}, {}
        with torch.set_grad_enabled(case.what in (TRAINING, SCAN_BACKWARD, CALL_WITH_GRADIENTS)):
            for name, candidate in candidates(case, device).items():
                results[name] = []
                try:
                    if inputs is None:
                        raise Skipped(f"needs about {needed / 1e9:.0f} GB of memory")
                    function = admit(case, name, candidate, inputs, clock, limit)
                    if case.what == TRAINING:
                        held[name] = held_bytes(function)
                    else:
                        clock(function)  # warms up
                    functions[name] = function
                except Exception as error:  # whatever other people's code may raise
                    results[name] = error.with_traceback(None)  # which would keep its tensors
            timer = time_of_call if case.what in (CALL, CALL_WITH_GRADIENTS) else clock
            results |= interleave(functions, rounds, timer, seconds)
        yield rows_of(case, results, held)
        del functions
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def admit(case, name, candidate, inputs, clock, limit):
    """The function to time. Ours is checked; of somebody else's layer a call with a 32nd of the
    time steps comes first, so that nothing is called that takes much longer than `limit` seconds.
    """
    torch.manual_seed(0)
    module = candidate.make(case.sizes[2]).to(inputs.x)
    if name not in QUICK:
        steps = max(1, case.sizes[1] // 32)
        function = bind(case.what, candidate, module, inputs.head(steps))
        clock(function)  # may compile something
        if clock(function) * case.sizes[1] / steps > limit:
            raise Skipped(f"a call takes more than {limit:g} s")
    function = bind(case.what, candidate, module, inputs)
    if name in OURS:
        check(module, function, inputs)
    return function
