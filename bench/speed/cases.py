"""What is measured: shapes, dtypes, and the tensors that every candidate of a case is called with.

B sequences in a batch, T time steps, N features and as many channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SIZES = [  # (B, T, N)
    (32, 256, 128),
    (32, 512, 128),
    (32, 1024, 128),
    (32, 1024, 512),
    (16, 784, 512),
    (8, 4096, 1024),
    (128, 150, 2000),
    (1, 65536, 256),
    (1, 1048576, 256),
    (1024, 20, 512),
]
# With those of (32, T, 128) above: a training step's time against T.
MORE_STEPS = [(32, T, 128) for T in (64, 128, 2048, 4096, 8192)]
ONE_STEP = (1, 1, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SCAN_FORWARD, SCAN_BACKWARD = "scan forward", "scan backward"
FORWARD, TRAINING = "forward", "training step"
CALL, CALL_WITH_GRADIENTS = "one call", "one call with gradients"
# Each of these has candidates of its own.
LAYERS = TRAINING, FORWARD
SCANS = SCAN_FORWARD, SCAN_BACKWARD
CALLS = CALL, CALL_WITH_GRADIENTS


class Case(NamedTuple):
    """One comparison: every candidate for `what`, on the same input."""

    sizes: tuple[int, int, int]
    dtype: str
    what: str

    def __str__(self):
        return f"({', '.join(map(str, self.sizes))}), {self.dtype}, {self.what}"


class Inputs(NamedTuple):
    """x, the input of a layer or of the recurrence alone, and the gradient that arrives at the
    output; (B, T, N)."""

    x: Tensor
    grad: Tensor

    @classmethod
    def draw(cls, sizes, dtype, device):
        """Normal numbers, always the same."""
        generator = torch.Generator(device).manual_seed(0)
        options = {"dtype": dtype, "device": device, "generator": generator}
        return cls(*(torch.randn(*sizes, **options) for _ in range(2)))

    def head(self, steps):
        """The first time steps alone."""
        return Inputs(*(part[:, :steps].contiguous() for part in self))


def plan(sizes, dtypes):
    """Lists of cases that share their input: of `sizes`, or of all that are measured if None."""
    whats = *SCANS, *LAYERS
    groups = [
        [Case(each, dtype, what) for what in whats] for each in sizes or SIZES for dtype in dtypes
    ]
    if sizes is None:
        groups += [[Case(each, dtype, TRAINING)] for each in MORE_STEPS for dtype in dtypes]
        groups.append([Case(ONE_STEP, "float32", what) for what in CALLS])
    return groups
