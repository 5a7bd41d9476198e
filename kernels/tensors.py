"""What launches read off a tensor, on CPUs and on GPUs: its order in memory, its state's dtype."""

import torch


def is_time_first(x: torch.Tensor) -> bool:
    """Whether a padded batch (B, T, channels) lies in memory as (T, B, channels)."""
    return x.dim() == 3 and x.stride(0) < x.stride(1)


def flatten_like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x (B, T, K) as (B*T, K), in the order in which the steps of `other` (B, T, N) lie in memory:
    a view if those of x lie in that order too. (total, K) stays as it is."""
    return (x.transpose(0, 1) if is_time_first(other) else x).flatten(0, -2)


def flat_view(h: torch.Tensor) -> torch.Tensor:
    """h (B, T, N), which is dense, as (B*T, N) in the order of memory, in the same memory."""
    h = h.transpose(0, 1) if is_time_first(h) else h
    return h.view(h.shape[:-1].numel(), h.shape[-1])


def state_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of the state and of sums for a tensor x of time steps."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
