"""Norms over sequences. Padding never enters a statistic, and is 0 after each of them."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .sequences import Sequences

Norm = Literal["batch", "batch_per_step", "layer"]
NormPosition = Literal["after", "before"]


class SequenceBatchNorm(nn.BatchNorm1d):
    """Batch norm with statistics over all sequences and steps together.

    What the IndRNN authors use for classification. Li et al. 2018, arXiv 1803.04831, section 4.
    """

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:  # type: ignore[override]
        """x: (B, T, features) or (total, features). Returns the same form."""
        if x.numel() == 0:
            return x
        valid = sequences.valid(x)
        if self.training and valid is not None:
            wide = x if x.dtype == torch.float64 else x.float()
            normal = self._normalize(wide, valid[..., None].to(wide.dtype))
            return sequences.without_padding(normal.to(x.dtype))
        rows = x.transpose(0, 1) if sequences.time_first else x
        rows = super().forward(rows.reshape(-1, self.num_features)).view(rows.shape)
        return sequences.without_padding(rows.transpose(0, 1) if sequences.time_first else rows)

    def _normalize(self, x: Tensor, counted: Tensor) -> Tensor:
        """With the statistics of the counted rows, in shapes that do not depend on the lengths."""
        count = counted.sum().clamp(min=1)
        mean = (x * counted).sum((0, 1)) / count
        var = ((x - mean).square() * counted).sum((0, 1)) / count
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = var * count / (count - 1).clamp(min=1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running += self.momentum * (new.to(running.dtype) - running)
        return (x - mean) * (self.weight * torch.rsqrt(var + self.eps)) + self.bias


class StepBatchNorm(nn.Module):
    """Batch norm with statistics for each time step, and one scale and shift for all of them.

    What the IndRNN authors use for language models; Cooijmans et al. 2016, arXiv 1603.09025.
    Evaluation takes the running statistics of each step; past the last one, the last one's.

    Args:
        num_features: features of the input.
        steps: time steps with statistics of their own; in training no input may be longer.
        eps, momentum: as in `torch.nn.BatchNorm1d`.
    """

    def __init__(
        self,
        num_features: int,
        steps: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.steps, self.eps, self.momentum = num_features, steps, eps, momentum
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.running_mean: Tensor
        self.running_var: Tensor
        for name in ("running_mean", "running_var"):
            statistics = torch.empty(steps, num_features, device=device, dtype=dtype)
            self.register_buffer(name, statistics)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, x: Tensor, sequences: Sequences, first_step: int = 0) -> Tensor:
        """x: (B, T, features) or (total, features), its first row being step `first_step`."""
        if x.numel() == 0:
            return x
        step = sequences.steps(x)
        wide = x if x.dtype == torch.float64 else x.float()
        if self.training:
            mean, var = self._statistics(wide, sequences, step, first_step)
        else:
            step = (step + first_step).clamp(max=self.steps - 1)
            mean, var = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(var + self.eps)
        wide = wide * scale[step] + (self.bias - mean * scale)[step]
        return sequences.without_padding(wide.to(x.dtype))

    def _statistics(
        self, x: Tensor, sequences: Sequences, step: Tensor, first_step: int
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of each step (steps, features), which the running ones learn."""
        used = (
            x.shape[1] if sequences.cu_seqlens is None else int(sequences.cu_seqlens.diff().max())
        )
        if first_step + used > self.steps:
            raise ValueError(
                f"norm_steps must be at least the input's {first_step + used} time steps, "
                f"but is {self.steps}"
            )
        valid = sequences.valid(x)
        counted = x.new_ones(x.shape[:-1]) if valid is None else valid.to(x.dtype)

        def total(rows: Tensor) -> Tensor:
            if sequences.cu_seqlens is None:
                return rows.sum(0)
            return rows.new_zeros(used, rows.shape[-1]).index_add(0, step, rows)

        count = total(counted[..., None])
        mean = total(x * counted[..., None]) / count.clamp(min=1)
        var = total((x - mean[step]).square() * counted[..., None]) / count.clamp(min=1)
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                old = running[first_step : first_step + used]
                old += self.momentum * (count > 0) * (new.to(old.dtype) - old)
        return mean, var

    def extra_repr(self) -> str:
        return f"{self.num_features}, steps={self.steps}"


class SequenceLayerNorm(nn.LayerNorm):
    """Layer norm: each row by its own mean and variance. Ba et al. 2016, arXiv 1607.06450."""

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:  # type: ignore[override]
        """x: (B, T, features) or (total, features). Returns the same form."""
        rows = x.transpose(0, 1) if sequences.time_first else x
        rows = super().forward(rows)
        return sequences.without_padding(rows.transpose(0, 1) if sequences.time_first else rows)


SequenceNorm = SequenceBatchNorm | StepBatchNorm | SequenceLayerNorm


def check_norm(norm: str | None, position: str, steps: int | None) -> None:
    """Raises a ValueError for a norm that does not exist or lacks its number of steps."""
    if norm is not None and norm not in get_args(Norm):
        raise ValueError(
            f"norm must be one of {', '.join(get_args(Norm))} or None, but is {norm!r}"
        )
    if position not in get_args(NormPosition):
        raise ValueError(f"norm_position must be 'after' or 'before', but is {position!r}")
    if (norm == "batch_per_step") != (steps is not None):
        raise ValueError(
            f"norm_steps must be the longest sequence's time steps with norm='batch_per_step', "
            f"otherwise None, but is {steps} with norm={norm!r}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"norm_steps must be positive, but is {steps}")


def make_norm(
    norm: Norm | None,
    num_features: int,
    steps: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> SequenceNorm | None:
    """The module for a norm's name."""
    if norm == "batch":
        return SequenceBatchNorm(num_features, device=device, dtype=dtype)
    if norm == "batch_per_step":
        assert steps is not None
        return StepBatchNorm(num_features, steps, device=device, dtype=dtype)
    if norm == "layer":
        return SequenceLayerNorm(num_features, device=device, dtype=dtype)
    return None
