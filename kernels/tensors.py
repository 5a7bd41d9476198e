"""What launches on CPUs and on GPUs share: the clamp of each nonlinearity, and what they read off a
tensor, its order in memory and the dtype of its state."""

import math

import torch

# lo and hi of the clamp, None for no bound. For tanh, which is no clamp, kernels have a flag.
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "relu": (0.0, None),
    "identity": (None, None),
    "hardtanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "tanh": (None, None),
}


def is_time_first(x: torch.Tensor) -> bool:
    """Whether a padded batch (B, T, channels) lies in memory as (T, B, channels)."""
    return x.dim() == 3 and x.stride(0) < x.stride(1)


def flatten_like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x (B, T, K) as (B*T, K), in the order in which the steps of `other` (B, T, N) lie in memory:
    a view if those of x lie in that order too. (total, K) stays as it is."""
    x = x.transpose(0, 1) if is_time_first(other) else x
    # No -1, which 0 features leave open; nor flatten, for which the vmap of torch.autograd has no
    # rule.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def flat_view(h: torch.Tensor) -> torch.Tensor:
    """h (B, T, N), which is dense, as (B*T, N) in the order of memory, in the same memory."""
    h = h.transpose(0, 1) if is_time_first(h) else h
    return h.view(h.shape[:-1].numel(), h.shape[-1])


def state_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of the state and of sums for a tensor x of time steps."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
