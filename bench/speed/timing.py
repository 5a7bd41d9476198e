"""Times of several functions, measured in turn, so that what slows one slows all of them alike."""

import statistics
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Median and quartiles of a function's samples."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, samples):
        if len(samples) == 1:
            return cls(*samples * 3)
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))


def measure(functions, rounds, device):
    """functions: {name: function without arguments}. Returns {name: its seconds in each round}.

    Every round calls each function once, beginning with another one each time. Functions that are
    called in the same round can be compared by the ratio of their times there.
    """
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    names = list(functions)
    seconds = {name: [] for name in names}
    for number in range(-2, rounds):  # the first two rounds warm up
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize()
            began = time.perf_counter()
            result = functions[name]()
            synchronize()
            elapsed = time.perf_counter() - began
            del result  # outside the measured time
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds, above, below):
    """Median and quartiles of the ratio of two functions' times within a round."""
    return Times.of([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])
