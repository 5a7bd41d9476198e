"""One case measured: what is ours is checked, then all candidates are timed in turn.

Each candidate gives a row: its time in every round, or a word on why there is none.
"""

import functools
import gc
import math
import time

import torch
from torch.utils.benchmark import Timer

from bench.environment import give_back_freed_memory
from bench.speed.candidates import OURS, QUICK, bind, candidates
from bench.speed.cases import CALL_WITH_GRADIENTS, CALLS, DTYPES, SCAN_BACKWARD, TRAINING, Inputs
from bench.speed.checks import check

LEAST_ROUNDS = 5
SAMPLE = 200  # calls that are timed together where one takes microseconds
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
    return timer.timeit(SAMPLE).mean


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


def rows_of(case, results, held=()):
    """A row for each candidate: its milliseconds in every round, or what it raised."""
    rows = []
    for name, found in results.items():
        row = dict(zip("BTN", case.sizes, strict=True))
        row |= {"dtype": case.dtype, "what": case.what, "name": name}
        if isinstance(found, Skipped):
            row["skipped"] = str(found)
        elif isinstance(found, Exception):
            first_line = str(found).strip().partition("\n")[0]
            row["error"] = f"{type(found).__name__}: {first_line[:200]}"
        else:
            row["ms"] = [float(f"{1e3 * seconds:.4g}") for seconds in found]
            if name in held:
                row["bytes"] = held[name]
        rows.append(row)
    return rows


def measure(cases, device, clock, *, rounds, seconds, limit):
    """Yields the rows of each case; the cases have their sizes and dtype in common.

    rounds: at most; LEAST_ROUNDS at least, and more while `seconds` are not over. limit: seconds
    that a call of somebody else's layer may take.
    """
    give_back_freed_memory()
    dtype = DTYPES[cases[0].dtype]
    draw = functools.cache(lambda: Inputs.draw(cases[0].sizes, dtype, device))
    for case in cases:
        results, functions, held = {}, {}, {}
        with torch.set_grad_enabled(case.what in (TRAINING, SCAN_BACKWARD, CALL_WITH_GRADIENTS)):
            for name, candidate in candidates(case.what).items():
                results[name] = []
                try:
                    function = admit(case, name, candidate, draw(), clock, limit)
                    if case.what == TRAINING:
                        held[name] = held_bytes(function)
                    else:
                        clock(function)  # warms up
                    functions[name] = function
                except Exception as error:  # whatever other people's code may raise
                    results[name] = error.with_traceback(None)  # which would keep its tensors
            timer = time_of_call if case.what in CALLS else clock
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
