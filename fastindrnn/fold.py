"""Batch norms folded into the weights next to them, for inference."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .bidirectional import Bidirectional
from .checks import check_module
from .dense import DenseIndRNN
from .layers import IndRNN
from .residual import ResidualIndRNN
from .stack import Stack
from .units import Unit

Module = TypeVar("Module", bound=nn.Module)
# What a norm does to each feature at evaluation, y = scale * x + shift: (scale, shift) in float64.
# None: there is no norm.
Affine = tuple[Tensor, Tensor] | None


def fold_norms(module: Module) -> Module:
    """Folds the batch norms of a module's stacks into the weights next to them, in a copy.

    The copy's outputs and states equal the module's to rounding, and its forward is faster. It is
    for inference alone: in training, dropout would act before the norm's shift and not after it.

    A norm after a recurrence goes into each weight that reads that recurrence's output. A norm
    before a recurrence goes into the recurrence's own input weight. A layer that was built with
    bias=False may get a bias. These norms are not folded:

    - the norm after a stack's last recurrence, which the next module reads: see `fold_norms_into`;
    - in a `DenseIndRNN` without its last transition, every norm whose output is in the stack's;
    - in a `ResidualIndRNN` with norms before the recurrence, those of recurrences that have no
      input weight;
    - "batch_per_step" and "layer", whose scale and shift differ from step to step.

    Args:
        module: a stack, or any module with stacks in it. It is not changed.

    Returns:
        The copy, in evaluation mode.

    Raises:
        TypeError: module is no module.
        ValueError: no stack is in it, or a batch norm has no running statistics.

    Source: y = w * (x - mean) / sqrt(var + eps) + b is affine in x; W (s * x + t) + b =
    (W * s) x + (W t + b).

    Example:
        >>> rnn = IndRNN(10, 20, num_layers=6, norm="batch")
        >>> output, h_n = fold_norms(rnn)(torch.randn(5, 3, 10))
    """
    check_module(module)
    folded = copy.deepcopy(module).eval()
    stacks = _outer_stacks(folded)
    if not stacks:
        raise ValueError(
            f"module must be or hold an IndRNN or another stack, but is a {type(module).__name__} "
            "without one"
        )
    with torch.no_grad():
        for stack in stacks:
            _fold(stack)
    return folded


def fold_norms_into(stack: Module, head: nn.Linear) -> tuple[Module, nn.Linear]:
    """As `fold_norms`, and folds the norm of the stack's output into the linear layer after it.

    The copies give the outputs of the originals only where both are used. In padding the copy of
    the head gives another value than the original.

    Args:
        stack: an `IndRNN` or another stack; its output is what `head` reads.
        head: an `nn.Linear` on the stack's features.

    Returns:
        The stack's copy and the head's.

    Raises:
        TypeError, ValueError: as `fold_norms`; `stack` is no stack, or `head` does not fit.

    Example:
        >>> rnn, head = IndRNN(10, 20, norm="batch"), nn.Linear(20, 5)
        >>> rnn, head = fold_norms_into(rnn, head)
    """
    if not isinstance(stack, Stack):
        raise TypeError(f"stack must be an IndRNN or another stack, but is {type(stack).__name__}")
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be an nn.Linear, but is {type(head).__name__}")
    folded, reader = fold_norms(stack), copy.deepcopy(head).eval()
    with torch.no_grad():
        affine = _take_output(folded)
        if affine is not None:
            features = len(affine[0])
            if reader.in_features != features:
                raise ValueError(
                    f"head must read the stack's {features} features, but reads "
                    f"{reader.in_features}"
                )
            _fold_input(reader, "weight", "bias", affine)
    return folded, reader


def _outer_stacks(module: nn.Module) -> list[Stack]:
    """The stacks within a module that are not within another one."""
    if isinstance(module, Stack):
        return [module]
    return [stack for child in module.children() for stack in _outer_stacks(child)]


def _fold(stack: Stack) -> None:
    if isinstance(stack, IndRNN):
        _fold_layers(stack)
    elif isinstance(stack, ResidualIndRNN):
        _fold_residual(stack)
    elif isinstance(stack, DenseIndRNN):
        _fold_dense(stack)
    elif isinstance(stack, Bidirectional):
        _fold(stack.forwards)
        _fold(stack.backwards)


def _fold_layers(rnn: IndRNN) -> None:
    if not isinstance(getattr(rnn, "norm_l0", None), _BatchNorm):
        return
    _give_bias(rnn)
    affine: Affine = None
    for layer in range(rnn.num_layers):
        suffixes = rnn._suffixes(layer)
        for suffix in suffixes:
            names = f"weight_ih{suffix}", f"bias_ih{suffix}"
            _fold_input(rnn, *names, affine)
            if rnn.norm_position == "before":
                _fold_output(rnn, *names, _take(rnn, f"norm{suffix}"))
        if rnn.norm_position == "after" and layer < rnn.num_layers - 1:
            affine = _concatenate([_take(rnn, f"norm{suffix}") for suffix in suffixes])
    if rnn.norm_position == "before":
        rnn.norm = None


def _fold_residual(rnn: ResidualIndRNN) -> None:
    block: Any
    for block in rnn.blocks:
        first, second, output = block["first"], block["second"], block["output"]
        _fold_unit(second, _take_after(first))
        _fold_input(output, "weight", "bias", _take_after(second))


def _fold_dense(rnn: DenseIndRNN) -> None:
    source = rnn.first
    if source is not None:
        _fold_unit(source, None)
    block: Any
    for block in rnn.blocks:
        # Without a transition the block's features, with their norms, are the stack's output.
        is_inner = "transition" in block
        affine = None
        if is_inner:
            affine = _identity(rnn) if source is None else _take_after(source)
        for pair in block["dense"]:
            _fold_unit(pair["bottleneck"], affine)
            _fold_unit(pair["layer"], _take_after(pair["bottleneck"]))
            if is_inner:
                affine = _concatenate([affine, _take_after(pair["layer"])])
        if is_inner:
            source = block["transition"]
            _fold_unit(source, affine)


def _identity(rnn: DenseIndRNN) -> Affine:
    """Scale 1 and shift 0 for the stack's input, which has no norm, where it is concatenated to
    features that have one; None if these have none either."""
    block: Any = rnn.blocks[0]
    unit = block["dense"][0]["layer"]
    if unit.norm_position == "before" or not isinstance(unit.norm, _BatchNorm):
        return None
    ones = unit.weight_hh.new_ones(rnn.input_size, dtype=torch.float64)
    return ones, torch.zeros_like(ones)


def _fold_unit(unit: Unit, affine: Affine) -> None:
    """Folds into the unit's weight the norm of its input, and its norm before the recurrence."""
    _fold_input(unit, "weight_ih", "bias_ih", affine)
    if unit.norm_position == "before":
        _fold_output(unit, "weight_ih", "bias_ih", _take(unit, "norm"))


def _take_after(unit: Unit) -> Affine:
    """Removes the unit's norm after the recurrence; returns its scale and shift."""
    return _take(unit, "norm") if unit.norm_position == "after" else None


def _take_output(stack: Stack) -> Affine:
    """Removes the norm after the stack's last recurrence; returns its scale and shift."""
    if isinstance(stack, Bidirectional):
        return _concatenate([_take_output(stack.forwards), _take_output(stack.backwards)])
    if isinstance(stack, IndRNN):
        if stack.norm is None or stack.norm_position != "after":
            return None
        suffixes = stack._suffixes(stack.num_layers - 1)
        affine = _concatenate([_take(stack, f"norm{suffix}") for suffix in suffixes])
        if affine is not None:
            stack.norm = None
        return affine
    if isinstance(stack, ResidualIndRNN):
        return _take_after(stack.last)
    if isinstance(stack, DenseIndRNN):
        last: Any = stack.blocks[-1]
        return _take_after(last["transition"]) if "transition" in last else None
    return None


def _take(owner: nn.Module, name: str) -> Affine:
    """Removes a batch norm and returns its scale and shift; None for another norm, which stays."""
    norm = getattr(owner, name)
    if not isinstance(norm, _BatchNorm):
        return None
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{name} must have running statistics, but has track_running_stats=False")
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    setattr(owner, name, None)
    return scale, shift


def _concatenate(affines: list[Affine]) -> Affine:
    """Scale and shift of the concatenated features, of which all have a norm, or none has."""
    found = [affine for affine in affines if affine is not None]
    if not found:
        return None
    assert len(found) == len(affines)
    return torch.cat([scale for scale, _ in found]), torch.cat([shift for _, shift in found])


def _fold_input(owner: nn.Module, weight_name: str, bias_name: str, affine: Affine) -> None:
    """W (scale * x + shift) + b = W' x + b'."""
    if affine is not None:
        scale, shift = affine
        weight = getattr(owner, weight_name).double()
        _set(owner, weight_name, bias_name, weight * scale, weight @ shift, 1.0)


def _fold_output(owner: nn.Module, weight_name: str, bias_name: str, affine: Affine) -> None:
    """scale * (W x + b) + shift = W' x + b'."""
    if affine is not None:
        scale, shift = affine
        weight = getattr(owner, weight_name).double()
        _set(owner, weight_name, bias_name, weight * scale[:, None], shift, scale)


def _set(
    owner: nn.Module,
    weight_name: str,
    bias_name: str,
    weight: Tensor,
    shift: Tensor,
    bias_scale: Tensor | float,
) -> None:
    """Sets the weight, and the bias to bias_scale * bias + shift; without a bias, to the shift."""
    old, bias = getattr(owner, weight_name), getattr(owner, bias_name)
    old.copy_(weight)
    if bias is None:
        new = nn.Parameter(shift.to(old.dtype), requires_grad=old.requires_grad)
        setattr(owner, bias_name, new)
    else:
        bias.copy_(bias_scale * bias.double() + shift)


def _give_bias(rnn: IndRNN) -> None:
    """Gives biases of zeros to a layer that was built without."""
    if rnn.bias:
        return
    rnn.bias = True
    for layer in range(rnn.num_layers):
        for suffix in rnn._suffixes(layer):
            weight = getattr(rnn, f"weight_ih{suffix}")
            zeros = weight.new_zeros(rnn.hidden_size)
            new = nn.Parameter(zeros, requires_grad=weight.requires_grad)
            rnn.register_parameter(f"bias_ih{suffix}", new)
