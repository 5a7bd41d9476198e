"""How the tests of the Triton kernels launch them: on a GPU if there is one, else in Triton's
interpreter or on the emulator."""

import emulator
import pytest
import torch

from fastindrnn.kernels import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu" and not emulator.is_used()
INFINITIES = [torch.inf, -torch.inf, torch.nan]

# States that outgrow their dtype are part of these tests; numpy, the interpreter's engine, warns.
MAY_OVERFLOW = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) enc.*:RuntimeWarning"
)


def on_device(x):
    return x.to(DEVICE) if torch.is_tensor(x) else x


def scan_forward(a, u, h0, h, **options):
    """`gpu.scan_forward` on the device, with tensors and results on the CPU."""
    options = {name: on_device(x) for name, x in options.items()}
    written = on_device(h)
    h_n = gpu.scan_forward(on_device(a), on_device(u), on_device(h0), written, **options)
    h.copy_(written)
    return h_n.to(a.device)


def scan_backward(*tensors, **options):
    """`gpu.scan_backward` on the device, with tensors and results on the CPU."""
    options = {name: on_device(x) for name, x in options.items()}
    gradients = gpu.scan_backward(*map(on_device, tensors), **options)
    return [x.to(tensors[0].device) for x in gradients]
