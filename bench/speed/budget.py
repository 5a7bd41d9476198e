"""Which candidates are worth their time: what would take too long, or too much memory, is not
called."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

SHARE = 0.8  # of the free memory
PROBES = 256  # time steps of the longer of two short calls, at most


class Skipped(Exception):
    """Says in a few words why there is no figure."""


@dataclass(frozen=True)
class Budget:
    """Seconds: `call`, the longest that a peer may take for a forward of one layer; `main` and
    `peer`, for all samples of one candidate of a case."""

    call: float
    main: float
    peer: float

    def limit(self, simple):
        """Of a call; a quarter for what is not `simple`: training steps and stacks."""
        return self.call if simple else self.call / 4


BUDGETS = {"cpu": Budget(call=6, main=1.5, peer=0.4), "cuda": Budget(call=2, main=0.3, peer=0.1)}


def free_bytes(device):
    """Memory that can be had; on a CPU as Linux says, None where it does not."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def check_memory(needed, device):
    """Raises `Skipped` unless there is memory for so many bytes."""
    free = free_bytes(device)
    if free is not None and needed > SHARE * free:
        raise Skipped(f"would need about {needed / 1e9:.0f} of {free / 1e9:.0f} GB free")


def check_seconds(seconds, limit, at_least=False):
    if seconds > limit:
        word = "at least" if at_least else "about"
        shown = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
        raise Skipped(f"would take {word} {shown} s a call")


def predict(candidate, inputs, clock, limit):
    """About how many seconds a call takes, from calls with few time steps; 0 if T is too short.

    A line through two points: a cost of its own, and one for each step.
    """
    T = inputs.x.shape[1]
    longer = min(PROBES, T // 8)
    if longer < 4:
        return 0.0
    points = []
    for steps in (longer // 4, longer):
        function = candidate.bind(inputs.head(steps))
        seconds = clock(function)
        if seconds * T / steps > limit:  # the first call may have compiled something
            seconds = clock(function)
        if seconds > 1:
            return seconds * T / steps
        points.append((steps, seconds))
    (few, short), (many, long) = points
    return long + max(0.0, long - short) / (many - few) * (T - many)
