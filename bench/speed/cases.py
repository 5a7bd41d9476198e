"""What is measured: sizes, dtypes, and how cost grows."""

from dataclasses import dataclass

import torch

# (B, T, N)
PUBLISHED = [(32, 256, 128), (32, 512, 128), (32, 1024, 128)]
SIZES = [
    *PUBLISHED,
    (32, 1024, 512),
    (16, 784, 512),
    (8, 4096, 1024),
    (128, 150, 2000),
    (1, 65536, 256),
    (1, 1048576, 256),
    (1024, 20, 512),
]
SCAN_SIZES = [(32, 1000, 128)]  # of the recurrence alone
QUICK_SIZES = [(8, 128, 64), (64, 20, 128)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEPTHS = (1, 6)

FORWARD, TRAINING = "forward", "training step"
SCAN_FORWARD, SCAN_BACKWARD = "scan forward", "scan backward"


@dataclass(frozen=True)
class Case:
    """One table: what is called with which input. layers: 0 for the recurrence alone."""

    sizes: tuple[int, int, int]
    dtype: str
    what: str
    layers: int

    def title(self):
        stack = {0: "", 1: "1 layer, "}.get(self.layers, f"{self.layers} layers, ")
        return f"{', '.join(map(str, self.sizes))}; {self.dtype}; {stack}{self.what}"


def cases_of(sizes, dtype, depths=DEPTHS):
    """The recurrence, then layers; a forward before the training step."""
    scans = [Case(sizes, dtype, what, 0) for what in (SCAN_FORWARD, SCAN_BACKWARD)]
    return scans + [
        Case(sizes, dtype, what, layers) for layers in depths for what in (FORWARD, TRAINING)
    ]


@dataclass(frozen=True)
class Sweep:
    """One of B, T, N takes several values; the other two stay."""

    variable: str
    base: tuple[int, int, int]
    values: tuple[int, ...]
    dtype: str

    def sizes(self):
        index = "BTN".index(self.variable)
        return [(*self.base[:index], value, *self.base[index + 1 :]) for value in self.values]


def doubling(first, last):
    values = [first]
    while values[-1] < last:
        values.append(2 * values[-1])
    return tuple(values)


def sweeps(kind, quick=False):
    """Large enough that most points are bound by work, not by the cost of a call."""
    if quick:
        plan = [("T", (4, 0, 32), 16, 64), ("B", (0, 32, 32), 2, 8), ("N", (4, 32, 0), 16, 64)]
    elif kind == "cuda":
        plan = [
            ("T", (32, 0, 512), 64, 65536),
            ("B", (0, 1024, 512), 8, 1024),
            ("N", (32, 1024, 0), 128, 8192),
        ]
    else:
        plan = [
            ("T", (32, 0, 128), 64, 8192),
            ("B", (0, 512, 256), 1, 128),
            ("N", (16, 256, 0), 64, 2048),
        ]
    dtype = "bfloat16" if kind == "cuda" else "float32"
    return [
        Sweep(variable, base, doubling(first, last), dtype) for variable, base, first, last in plan
    ]
