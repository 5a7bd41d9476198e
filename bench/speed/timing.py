"""Times of several functions, measured in turn, so that what slows one slows all of them alike."""

import statistics
import time
from dataclasses import dataclass

import torch

FLUSHED = 256 << 20  # bytes that are zeroed before each sample: several times any L2 cache


@dataclass(frozen=True)
class Times:
    """Median and quartiles of a number of samples."""

    lower: float
    median: float
    upper: float
    samples: int

    @classmethod
    def of(cls, samples):
        if len(samples) == 1:
            return cls(*samples * 3, 1)
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"), len(samples))

    def record(self, digits=4):
        """For a JSON: so many significant digits."""
        return {
            name: value if name == "samples" else float(f"{value:.{digits}g}")
            for name, value in vars(self).items()
        }


class Clock:
    """`clock(function)`: the seconds of one call. What the call returns is freed outside of them.

    CPU: wall time. GPU: between two CUDA events around the call, after 256 MiB were zeroed, so that
    nobody finds its input in the L2 cache where the one before left it. The host is ahead by the
    time of zeroing: the cost of launching counts only as far as it exceeds that.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        if self.device.type == "cuda":
            self.flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)

    def __call__(self, function):
        return self.call(function)[0]

    def call(self, function):
        """The seconds of a call, and what it returned."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            result = function()
            return time.perf_counter() - began, result
        with torch.cuda.device(self.device):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self.flushed.zero_()
            began.record()
            result = function()
            ended.record()
            ended.synchronize()
        return began.elapsed_time(ended) / 1e3, result


def measure(functions, rounds, clock, strides=None):
    """functions: {name: function without arguments}. Returns {name: its seconds in each round}.

    Every round calls each function once, beginning with another one each time. Functions that are
    called in the same round can be compared by the ratio of their times there. A function with a
    stride k is called in every k-th round only; it has None for the others.
    """
    names = list(functions)
    seconds = {name: [None] * rounds for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if number % (strides or {}).get(name, 1) == 0:
                seconds[name][number] = clock(functions[name])
    return seconds


def stride(seconds, rounds, budget):
    """In every how many-th round a function is called: a power of two, so that those of two
    functions have rounds in common; the least with which all calls take `budget` at most, one call
    at any rate."""
    step = 1
    while step < rounds and -(-rounds // step) * seconds > budget:
        step *= 2
    return step


def times(seconds):
    """Median and quartiles of a function's times, in milliseconds."""
    return Times.of([1e3 * sample for sample in seconds if sample is not None])


def ratio(above, below):
    """Median and quartiles of the ratio of two functions' times within a round."""
    pairs = zip(above, below, strict=True)
    return Times.of([a / b for a, b in pairs if a is not None and b is not None])
