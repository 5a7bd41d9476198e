"""Which way a layer's call takes: one fused kernel, or the library's product and then the scan."""

import torch
import triton

from ..tensors import is_time_first
from . import devices
from .model import choose
from .projection import _fused_fwd_kernel
from .tensors import last_offset, sizes


def choice_of(strategy, x, weight, h, options, *, directions=1, backward=False):
    """The `model.Choice` for one call.

    x, weight, h: (B, T, K), (directions * N, K) and (B, T, directions * N); in the backward x is
    grad_next, and weight the transposed weight_next. strategy: "auto", "fused" or "split". Raises
    ValueError where strategy is "fused" and the fused kernel cannot serve.
    """
    device = devices.device_of(x)
    obstacle = _obstacle_to_fusing(x, weight, options.nonlinearity, device)
    if strategy == "fused" and obstacle:
        raise ValueError(f"strategy='fused' cannot be: {obstacle}; 'split' and 'auto' can")
    # Without TF32 the fused product is made of ordinary instructions, and the library's is faster.
    is_plain = x.dtype == torch.float32 and not devices.allows_tf32()
    if strategy == "auto" and (obstacle or is_plain):
        strategy = "split"
    # What Triton takes as a sign that 16 bytes can be loaded at once.
    tensors = (x, weight.t() if backward else weight, h)
    aligned = all(
        y.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in y.stride()[:-1])
        for y in tensors
    )
    B, T = sizes(h, options.cu_seqlens)
    is_packed = options.cu_seqlens is not None
    # A slice of the batch has to be contiguous, because the product is written to it flattened.
    can_slice = not (backward or is_packed or is_time_first(h))
    return choose(
        device,
        strategy,
        B=B * directions,
        T=T,
        K=x.shape[-1],
        N=weight.shape[0] // directions,
        itemsize=x.element_size(),
        backward=backward,
        aligned=aligned,
        can_chain=not is_packed and devices.can_chain(),
        most_slices=B if can_slice else 1,
    )


def _obstacle_to_fusing(x, weight, nonlinearity, device):
    """Why the fused kernel cannot serve, or None."""
    if x.dtype == torch.float64:
        return "no tensor cores for float64"
    if nonlinearity == "tanh":
        return "tanh is not a clamp and its steps cannot be composed"
    if device.family is None:
        return "it knows no matrix instructions of this GPU"
    if x.dtype == torch.bfloat16 and not isinstance(_fused_fwd_kernel, triton.JITFunction):
        return "Triton's interpreter cannot multiply bfloat16"
    if x.shape[-1] == 0:
        return "there is no product with 0 features"
    if last_offset(weight) >= 2**31:
        return "its offsets in a weight have 31 bits, and this weight spans more elements"
    return None
