"""What does not grow with the work: the cost of a call; and what a second thread brings."""

import os

import torch
from torch import nn

from bench.speed import timing
from bench.speed.candidates import LAYER
from bench.speed.inputs import Inputs
from fastindrnn import IndRNN, IndRNNCell
from fastindrnn.functional import indrnn, indrnn_scan

CALL, THREADS = "one call", "scan forward on threads"
STEP, CELL, FUNCTION, PLAIN = "IndRNN.step", "IndRNNCell", "indrnn", "nn.Linear + relu"
CALLS = 200  # of a sample
CALL_SIZES, THREAD_SIZES = (1, 1, 256), (1, 65536, 256)


def record(what, sizes, seconds, below, calls=1):
    """As the record of a case."""
    seconds = {name: [sample / calls for sample in own] for name, own in seconds.items()}
    return {
        "sizes": dict(zip("BTN", sizes, strict=True)),
        "dtype": "float32",
        "layers": 0 if what == THREADS else 1,
        "what": what,
        "ms": {name: timing.times(own).record() for name, own in seconds.items()},
        "ratios": {
            one: {
                name: timing.ratio(own, seconds[one]).record()
                for name, own in seconds.items()
                if name != one
            }
            for one in below
        },
        "memory_bytes": {},
        "skipped": {},
    }


@torch.no_grad()
def call_cost(device, clock, rounds):
    """Inference at one time step of one sequence: Python, dispatcher and launch, little else."""
    N = CALL_SIZES[-1]
    x, state = (torch.randn(1, 1, N, device=device) for _ in range(2))
    row = x[:, 0]
    rnn = IndRNN(N, N, batch_first=True, device=device)
    cell, linear = IndRNNCell(N, N, device=device), nn.Linear(N, N, device=device)
    parts = rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.weight_hh_l0
    functions = {
        LAYER: lambda: rnn(x),
        STEP: lambda: rnn.step(row, state),
        CELL: lambda: cell(row, state[0]),
        FUNCTION: lambda: indrnn(x, *parts),
        PLAIN: lambda: torch.relu(linear(x)),
    }

    def many(function):
        def call():
            for _ in range(CALLS):
                function()

        return torch.no_grad()(call)

    functions = {name: many(function) for name, function in functions.items()}
    timing.measure(functions, 1, clock)  # warms up
    seconds = timing.measure(functions, rounds, clock)
    return record(CALL, CALL_SIZES, seconds, (PLAIN,), CALLS)


def threads_word(count):
    return f"{count} thread{'s' if count > 1 else ''}"


@torch.no_grad()
def thread_scaling(clock, rounds, sizes=THREAD_SIZES):
    """The recurrence on 1, 2, 4, ... threads of a CPU, in turn; None if there is only one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    if len(counts) < 2:
        return None
    inputs = Inputs.draw(sizes, torch.float32, "cpu")

    def on(count):
        def call():
            torch.set_num_threads(count)
            return indrnn_scan(inputs.x, inputs.u)

        return call

    before = torch.get_num_threads()
    functions = {threads_word(count): on(count) for count in counts}
    try:
        timing.measure(functions, 2, clock)  # warms up
        seconds = timing.measure(functions, rounds, clock)
    finally:
        torch.set_num_threads(before)
    return record(THREADS, sizes, seconds, [threads_word(count) for count in counts[1:]])
