"""The authors' PyTorch networks, in and out."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..cell import IndRNNCell
from ..dense import DenseIndRNN
from ..layers import IndRNN
from ..norm import StepBatchNorm
from ..residual import ResidualIndRNN
from ..units import Unit
from .states import (
    State,
    check_eps,
    check_mapping,
    check_nonlinearity,
    check_state,
    copy_into,
    norms_of,
)

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HEADS = ("classifier.", "lastfc.")
# The modules of their language models that are not the stack.
_AROUND = ("encoder.", "decoder.", "last_fc.", "last_indrnn.", "extra_bn.")


def load_authors(
    module: IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN, state: State
) -> dict[str, Tensor]:
    """Fills `module` from the state dict of one of the authors' networks.

    Their plain network fits an `IndRNN` (`DIs.0.fc.weight`, `RNNs.0.indrnn1.weight_hh`,
    `RNNs.0.norm1.bn.weight`, or as in their first version `DIs.0.weight`, `RNNs.0.weight_hh`,
    `BNs.0.bn.weight`), their pre-activation residual network a `ResidualIndRNN`, their dense
    network a `DenseIndRNN`, with `last_features=0` if it has no last transition. A state dict does
    not say whether a norm is before or after the recurrence: set `norm_position` to "after" for
    their bn_after and to "before" for bn_before.

    The stacks of their language models (folder PTB) have norm "batch_per_step", and `norm_steps` is
    the first dimension of `running_mean`, 4 * seq_len + 1; the dense one has `first_features=0` and
    `last_features` of the embedding's size. The plain and the residual one have another layer after
    the stack: load it into a second module, of one layer, from what the first call returns.

    Args:
        module: of their sizes, nonlinearity "relu", norm "batch", "batch_per_step" or None, norms
            with eps 1e-5 as theirs, one direction, no zoneout.
        state: from any of their recurrences: the CUDA one, the loop (`indrnn_cell`), the loop of
            before 2019 (`cells.0`, `h0`).

    Returns:
        The entries that are not of the stack. Of a classifier the head's weight and bias, which
        `nn.Linear.load_state_dict` takes; empty if there is none. Of a language model
        `encoder.weight`, `decoder.weight` and `decoder.bias`; `last_fc...` and `last_indrnn...`,
        the layer for the second call; with bn_before `extra_bn...`, the entries of the
        `fastindrnn.norm.StepBatchNorm` before the decoder.

    Raises:
        TypeError, ValueError: the module does not fit; a name is missing, unknown, or its shape
            wrong.

    Source: github.com/Sunnydreamrain/IndRNN_pytorch.

    Example:
        >>> stack = IndRNN(300, 600, 12, norm="batch_per_step", norm_steps=201)
        >>> last = IndRNN(600, 300, norm="batch_per_step", norm_steps=201)
        >>> rest = load_authors(last, load_authors(stack, torch.load(path)))  # doctest: +SKIP
    """
    names = _authors_names(module)
    check_mapping("state", state)
    # The authors' loop keeps zeros as a buffer, h0.
    given = {_modern(k): value for k, value in state.items() if k.split(".")[-1] != "h0"}
    if isinstance(module, IndRNN) and not any(key.startswith("DIs.") for key in given):
        given = {_as_layer(key): value for key, value in given.items()}
    around = _HEADS + (_AROUND if _is_language_model(module) else ())
    rest = {key: given.pop(key) for key in list(given) if key.startswith(around)}
    needed = {names[key]: value for key, value in module.state_dict().items()}
    # Networks saved before PyTorch 0.4.1 have no such counter, and our norm per step has none.
    for key in given.keys() ^ needed.keys():
        if key.endswith(".num_batches_tracked"):
            given.pop(key, None)
            needed.pop(key, None)
    copy_into(
        check_state(given, {key: tuple(value.shape) for key, value in needed.items()}), needed
    )
    return {
        key.split(".", 1)[1] if key.startswith(_HEADS) else key: torch.as_tensor(value)
        for key, value in rest.items()
    }


def to_authors(module: IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN) -> dict[str, Tensor]:
    """The state dict, of the stack alone, that the authors' network of the same form would have.

    The counters of batches of norms per step, which the module does not have, are 0.

    Args:
        module: as `load_authors` takes it, whose inverse this is.

    Returns:
        Tensors by the authors' names.

    Raises:
        TypeError, ValueError: the module does not fit.

    Source: github.com/Sunnydreamrain/IndRNN_pytorch.
    """
    names = _authors_names(module)
    state = {names[key]: value.detach().clone() for key, value in module.state_dict().items()}
    if _is_language_model(module):
        norms = [key for key in state if key.endswith(".running_mean")]
        for key in norms:
            state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return state


def _modern(key: str) -> str:
    """A key of the authors' first version, loops, or DataParallel as one of their last version."""
    key = key.removeprefix("module.").replace(".cells.0.", ".").replace(".indrnn_cell.", ".")
    key = re.sub(r"^TransBlocks\.\d+\.extra_bn\.", "extra_bn.", key)
    key = re.sub(r"^DIs\.(\d+)\.(weight|bias)$", r"DIs.\1.fc.\2", key)
    key = re.sub(r"^RNNs\.(\d+)\.weight_hh$", r"RNNs.\1.indrnn1.weight_hh", key)
    return re.sub(r"^BNs\.(\d+)\.bn\.", r"RNNs.\1.norm1.bn.", key)


def _as_layer(key: str) -> str:
    """A key of the layer behind a language model's stack as one of a stack of one layer."""
    return re.sub(r"^last_indrnn\.", "RNNs.0.", re.sub(r"^last_fc\.", "DIs.0.", key))


def _is_language_model(module: nn.Module) -> bool:
    """Whether their network of this form is one of the language models: they have these norms."""
    return any(isinstance(part, StepBatchNorm) for part in module.modules())


def _authors_names(module: nn.Module) -> dict[str, str]:
    """For each name in the module's state dict, the authors'."""
    _check_authors(module)
    language = _is_language_model(module)
    features = "" if language else "features."
    names: dict[str, str] = {}

    def act(ours: str, theirs: str, tail: str = "") -> None:
        names[f"{ours}weight_hh{tail}"] = f"{theirs}.indrnn1.weight_hh"
        for name in _NORM:
            names[f"{ours}norm{tail}.{name}"] = f"{theirs}.norm1{'' if language else '.bn'}.{name}"

    def linear(weight: str, bias: str, theirs: str) -> None:
        names[weight], names[bias] = f"{theirs}.fc.weight", f"{theirs}.fc.bias"

    def unit(ours: str, fc: str, theirs: str) -> None:
        linear(f"{ours}weight_ih", f"{ours}bias_ih", fc)
        act(ours, theirs)

    if isinstance(module, IndRNN | IndRNNCell):
        for i in range(getattr(module, "num_layers", 1)):
            linear(f"weight_ih_l{i}", f"bias_ih_l{i}", f"DIs.{i}")
            act("", f"RNNs.{i}", f"_l{i}")
    elif isinstance(module, ResidualIndRNN):
        linear("input.weight", "input.bias", f"{features}fc0")
        for i in range(module.num_blocks):
            block = f"resblocks.{i}" if language else f"features.resblock{i + 1}"
            act(f"blocks.{i}.first.", f"{block}.IndRNNwithBN1")
            unit(f"blocks.{i}.second.", f"{block}.fc1", f"{block}.IndRNNwithBN2")
            linear(f"blocks.{i}.output.weight", f"blocks.{i}.output.bias", f"{block}.fc2")
        act("last.", "IndRNNwithBN_resfinal" if language else "features.IndRNNwithBN_last")
    elif isinstance(module, DenseIndRNN):
        if module.first is not None:
            unit("first.", f"{features}fc0", f"{features}IndRNNwithBN0")
        parts: Any
        for i, parts in enumerate(module.blocks):
            for j in range(len(parts["dense"])):
                layer = f"features.denseblock{i + 1}.denselayer{j + 1}"
                if language:
                    layer = f"DenseBlocks.{i}.denselayers.{j}"
                pair = f"blocks.{i}.dense.{j}"
                unit(f"{pair}.bottleneck.", f"{layer}.fc1", f"{layer}.IndRNNwithBN1")
                unit(f"{pair}.layer.", f"{layer}.fc2", f"{layer}.IndRNNwithBN2")
            last = i == len(module.blocks) - 1
            end = "features.lastlayer" if last else f"features.transition{i + 1}"
            if language:
                end = f"TransBlocks.{i}"
            norm = "IndRNNwithBN1" if language else "IndRNNwithBN"
            unit(f"blocks.{i}.transition.", f"{end}.fc", f"{end}.{norm}")
    return names


def _check_authors(module: nn.Module) -> None:
    """Raises an error unless the module has a form that the authors' networks can have."""
    if not isinstance(module, IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN):
        raise TypeError(
            "module must be an IndRNN, IndRNNCell, ResidualIndRNN or DenseIndRNN, "
            f"but is {type(module).__name__}"
        )
    check_eps(module)
    if any(getattr(part, "zoneout", 0) for part in module.modules()):
        raise ValueError("module's zoneout must be 0: the authors' networks have none")
    if getattr(module, "bidirectional", False):
        raise ValueError("module must have one direction, but is bidirectional")
    for norm in norms_of(module).values():
        if not isinstance(norm, _BatchNorm | StepBatchNorm):
            raise ValueError(
                "module's norm must be 'batch', 'batch_per_step' or None, but is a "
                f"{type(norm).__name__}"
            )
    for part in module.modules():
        if isinstance(part, IndRNN | IndRNNCell):
            check_nonlinearity(part, "relu")
        elif isinstance(part, Unit) and part.recurrence.nonlinearity != "relu":
            nonlinearity = part.recurrence.nonlinearity
            raise ValueError(f"module's nonlinearity must be 'relu', but is {nonlinearity!r}")
