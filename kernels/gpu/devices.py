"""What the launches need to know of the GPU, of PyTorch's settings and of Triton's version."""

import functools

import torch
import triton

from .model import Device

# On AMD, Triton before 3.9 moves the load by which a tile waits out of its loop, or does not
# compile that loop.
CHAINS_ON_AMD = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)


def device_of(x):
    """The GPU that x is on; for a tensor on the CPU, where Triton's interpreter runs, a made-up one
    of a single multiprocessor."""
    return _device(x.device.index) if x.is_cuda else Device("mma", 1, 32, 1 << 20)


@functools.cache
def _device(index):
    properties = torch.cuda.get_device_properties(index)
    family = None
    if torch.version.hip:
        if properties.gcnArchName.startswith(("gfx94", "gfx95")):
            family = "mfma"
    else:
        family = {8: "mma", 9: "wgmma", 10: "tcgen05", 12: "mma"}.get(properties.major)
    return Device(
        family, properties.multi_processor_count, properties.warp_size, properties.L2_cache_size
    )


def can_chain():
    """Whether a program can wait for the state that another one publishes (see `tiles`)."""
    return CHAINS_ON_AMD or not torch.version.hip


def allows_tf32():
    """PyTorch's own setting for products of float32. AMD's matrix instructions round nothing."""
    if torch.version.hip:
        return False
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
