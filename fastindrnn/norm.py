"""Norms over sequences. Padding never enters a statistic, and is 0 after each of them.

A layer's norm is one of PyTorch's modules, or any other that maps (steps, channels) to the same
shape: it is called once, on all time steps of all sequences. Or it is a `StepBatchNorm`.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import check_number, check_sizes
from .sequences import Sequences

__all__ = ["Norm", "NormFactory", "NormName", "NormPosition", "StepBatchNorm"]
NormName = Literal["batch", "batch_per_step", "layer"]
# Called with the number of channels, as nn.BatchNorm1d is.
NormFactory = Callable[[int], nn.Module]
Norm = NormName | NormFactory
NormPosition = Literal["after", "before"]

# These normalize each time step of each sequence by itself, so that padding changes nothing else.
_EACH_STEP = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Identity)


class StepBatchNorm(nn.Module):
    """Batch norm with statistics for each time step, and one scale and shift for all of them.

    What the IndRNN authors use for language models; Cooijmans et al. 2016, arXiv 1603.09025.
    Evaluation takes the running statistics of each step; past the last one, the last one's.

    Args:
        num_features: features of the input.
        steps: time steps with statistics of their own; in training no input may be longer.
        eps: as in `torch.nn.BatchNorm1d`.
        momentum: as in `torch.nn.BatchNorm1d`, but not None.
        device: of the parameters and statistics.
        dtype: of the parameters and statistics.

    Raises:
        TypeError, ValueError: num_features or steps is no positive int, or momentum no number.

    Example:
        >>> from functools import partial
        >>> norm = partial(StepBatchNorm, steps=50, momentum=0.05)
        >>> rnn = IndRNN(10, 20, norm=norm)  # norm="batch_per_step" has momentum=0.1
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
        check_sizes(num_features=num_features, steps=steps)
        check_number("momentum", momentum)
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
        """Sets scale, shift and statistics so that the norm in evaluation is the identity."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x with mean 0 and variance 1 in each feature at each step, then scaled and shifted.

        Args:
            x: (B, T, features) or (total, features).
            sequences: where the sequences of x begin and end, and with which step x begins.

        Returns:
            The same form as x, 0 in the padding.

        Raises:
            ValueError: the first step is not known; in training, the input has more steps than the
                norm.
        """
        if x.numel() == 0:
            return x
        if sequences.first_step is None:
            raise ValueError(
                "time_step must say which step of its sequence the input begins with, because a "
                "state is given and norm='batch_per_step' has statistics for each step; but is None"
            )
        step = sequences.steps(x)
        wide = x if x.dtype == torch.float64 else x.float()
        if self.training:
            mean, var = self._statistics(wide, sequences, step)
        else:
            step = (step + sequences.first_step).clamp(max=self.steps - 1)
            mean, var = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(var + self.eps)
        wide = wide * scale[step] + (self.bias - mean * scale)[step]
        return sequences.without_padding(wide.to(x.dtype))

    def _statistics(self, x: Tensor, sequences: Sequences, step: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each step (steps, features), which the running ones learn."""
        used = (
            x.shape[1] if sequences.cu_seqlens is None else int(sequences.cu_seqlens.diff().max())
        )
        assert sequences.first_step is not None, "checked"
        first, end = sequences.first_step, sequences.first_step + used
        if end > self.steps:
            raise ValueError(
                f"norm_steps, or steps of a StepBatchNorm, must be at least the input's {end} time "
                f"steps, but is {self.steps}"
            )
        valid = sequences.valid(x)
        counted = x.new_ones(x.shape[:-1]) if valid is None else valid.to(x.dtype)

        def total(values: Tensor) -> Tensor:
            if sequences.cu_seqlens is None:
                return values.sum(0)
            return values.new_zeros(used, values.shape[-1]).index_add(0, step, values)

        count = total(counted[..., None])
        mean = total(x * counted[..., None]) / count.clamp(min=1)
        var = total((x - mean[step]).square() * counted[..., None]) / count.clamp(min=1)
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                old = running[first:end]
                old += self.momentum * (count > 0) * (new.to(old.dtype) - old)
        return mean, var

    def extra_repr(self) -> str:
        """The sizes, in the representation of the module."""
        return f"{self.num_features}, steps={self.steps}"


def normalize(norm: nn.Module | None, x: Tensor, sequences: Sequences) -> Tensor:
    """x (B, T, channels) or (total, channels) after the norm; x itself without one.

    Batch norm has statistics over all sequences and steps together, which is what the IndRNN
    authors use for classification. Li et al. 2018, arXiv 1803.04831, section 4.

    Args:
        norm: a `StepBatchNorm`, or a module that maps (steps, channels) to the same shape.
        x: in any order of batch and time in memory.
        sequences: where the sequences of x begin and end.
    """
    if norm is None or x.numel() == 0:
        return x
    if isinstance(norm, StepBatchNorm):
        return norm(x, sequences)
    valid = sequences.valid(x)
    if valid is not None and not isinstance(norm, _EACH_STEP):
        if not isinstance(norm, _BatchNorm):
            return _of_valid_steps(norm, x, valid, sequences)
        if norm.training or norm.running_mean is None:
            # SyncBatchNorm exchanges statistics on its own: it has to be called.
            if isinstance(norm, nn.SyncBatchNorm):
                return _of_valid_steps(norm, x, valid, sequences)
            wide = x if x.dtype == torch.float64 else x.float()
            normal = _batch_norm(norm, wide, valid[..., None].to(wide.dtype))
            return sequences.without_padding(normal.to(x.dtype))
    in_memory = x.transpose(0, 1) if sequences.time_first else x
    y = norm(in_memory.reshape(-1, x.shape[-1])).reshape(in_memory.shape)
    return sequences.without_padding(y.transpose(0, 1) if sequences.time_first else y)


def _of_valid_steps(norm: nn.Module, x: Tensor, valid: Tensor, sequences: Sequences) -> Tensor:
    """`norm` called on the steps that are not padding, and on no others."""
    y = norm(x[valid])
    return sequences.in_memory_order(x.new_zeros(x.shape, dtype=y.dtype).index_put((valid,), y))


def _batch_norm(norm: _BatchNorm, x: Tensor, counted: Tensor) -> Tensor:
    """What `nn.BatchNorm1d` computes of the steps that are counted, without indexing by them: its
    shapes do not depend on the lengths, as `torch.compile` and `torch.export` want it."""
    count = counted.sum().clamp(min=1)
    mean = (x * counted).sum((0, 1)) / count
    var = ((x - mean).square() * counted).sum((0, 1)) / count
    if norm.training and norm.running_mean is not None:
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked += 1
            # None is the mean over all batches.
            rate = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
            unbiased = var * count / (count - 1).clamp(min=1)
            for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running += rate * (new.to(running.dtype) - running)
    scale = torch.rsqrt(var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    y = (x - mean) * scale
    return y if norm.bias is None else y + norm.bias


def check_norm(norm: Norm | None, position: str, steps: int | None) -> None:
    """Raises a TypeError or ValueError for a norm that does not exist or lacks its number of
    steps."""
    if isinstance(norm, nn.Module):
        raise TypeError(
            f"norm must be a name, or a function that makes a norm for a number of channels, but "
            f"is a {type(norm).__name__}, which all layers would share"
        )
    if norm is not None and not callable(norm) and norm not in get_args(NormName):
        raise ValueError(
            f"norm must be one of {', '.join(get_args(NormName))}, a function that makes a norm "
            f"for a number of channels, or None, but is {norm!r}"
        )
    if position not in get_args(NormPosition):
        raise ValueError(f"norm_position must be 'after' or 'before', but is {position!r}")
    if (norm == "batch_per_step") != (steps is not None):
        raise ValueError(
            f"norm_steps must be the longest sequence's time steps with norm='batch_per_step', "
            f"otherwise None, but is {steps} with norm={norm!r}"
        )
    if steps is not None:
        check_sizes(norm_steps=steps)


def make_norm(
    norm: Norm | None,
    num_features: int,
    steps: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module | None:
    """The module for a norm's name, or what the function makes."""
    if norm is None:
        return None
    if norm == "batch":
        return nn.BatchNorm1d(num_features, device=device, dtype=dtype)
    if norm == "batch_per_step":
        assert steps is not None
        return StepBatchNorm(num_features, steps, device=device, dtype=dtype)
    if norm == "layer":
        return nn.LayerNorm(num_features, device=device, dtype=dtype)
    assert callable(norm)
    module = norm(num_features)
    if not isinstance(module, nn.Module):
        raise TypeError(f"norm must make a module, but made {type(module).__name__}")
    return module.to(device=device, dtype=dtype)


def reset_norm(norm: nn.Module | None) -> None:
    """Calls `reset_parameters` of a norm that has it."""
    reset = getattr(norm, "reset_parameters", None)
    if reset is not None:
        reset()


def refuse_step(stack: nn.Module) -> None:
    """Raises a ValueError if a batch norm of the stack would learn from the step of a stream.

    A `StepBatchNorm` may: its statistics are of one step.
    """
    for name, part in stack.named_modules():
        if isinstance(part, _BatchNorm) and part.training:
            raise ValueError(
                f"step needs a stack in evaluation mode, but its batch norm {name} is in training "
                "mode, with statistics over all steps: call eval() first"
            )
