"""The authors' PyTorch networks, in and out; and the checks of state dicts that others share."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import DenseIndRNN, ResidualIndRNN
from .cell import IndRNNCell
from .layers import IndRNN
from .norm import SequenceLayerNorm, StepBatchNorm
from .units import Unit

# Names with values that torch.as_tensor takes: tensors, or NumPy arrays as TensorFlow gives them.
State = Mapping[str, Any]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HEADS = ("classifier.", "lastfc.")


def load_authors(
    module: IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN, state: State
) -> dict[str, Tensor]:
    """Fills `module` from the state dict of one of the authors' networks.

    Their plain network fits an `IndRNN` (`DIs.0.fc.weight`, `RNNs.0.indrnn1.weight_hh`,
    `RNNs.0.norm1.bn.weight`, or as in their first version `DIs.0.weight`, `RNNs.0.weight_hh`,
    `BNs.0.bn.weight`), their pre-activation residual network a `ResidualIndRNN`, their dense
    network with its last transition a `DenseIndRNN`. The names do not tell where a norm stands:
    `norm_position` must be "after" for their bn_after and "before" for bn_before.

    Args:
        module: of their sizes, nonlinearity "relu", norm "batch" or None, one direction, no
            zoneout.
        state: from either of their recurrences, the CUDA one or the loop (`cells.0`, `h0`).

    Returns:
        The head's weight and bias, which `nn.Linear.load_state_dict` takes; empty if there is none.

    Raises:
        TypeError, ValueError: the module does not fit; a name is missing, unknown, or its shape
            wrong.

    Source: github.com/Sunnydreamrain/IndRNN_pytorch.
    """
    names = _authors_names(module)
    given = {_modern(key): value for key, value in state.items() if not _is_h0(key)}
    heads = [key for key in given if key.startswith(_HEADS)]
    head = {key.split(".", 1)[1]: torch.as_tensor(given.pop(key)) for key in heads}
    ours = module.state_dict()
    needed = {names[key]: value for key, value in ours.items()}
    # Networks saved before PyTorch 0.4.1 have no such counter.
    counters = [key for key in needed if key.endswith(".num_batches_tracked")]
    for key in counters:
        if key not in given:
            del needed[key]
    copy_into(
        check_state(given, {key: tuple(value.shape) for key, value in needed.items()}), needed
    )
    return head


def to_authors(module: IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN) -> dict[str, Tensor]:
    """The state dict, without a head, that the authors' network of the same form would have.

    Raises, source: as `load_authors`, whose inverse it is.
    """
    names = _authors_names(module)
    return {names[key]: value.detach().clone() for key, value in module.state_dict().items()}


def check_state(state: State, shapes: Mapping[str, tuple[int, ...]], where: str = "state") -> State:
    """The values as tensors; a ValueError unless names and shapes are those of `shapes`."""
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"{where} lacks {key!r}, which must be {shape}")
    checked = {}
    for key, value in state.items():
        checked[key] = torch.as_tensor(value)
        shape = tuple(checked[key].shape)
        if key not in shapes:
            known = ", ".join(shapes) if len(shapes) <= 3 else f"{len(shapes)} names of the module"
            raise ValueError(f"{where} must hold only {known}, but also has {key!r}, {shape}")
        if shape != shapes[key]:
            raise ValueError(f"{where}'s {key!r} must be {shapes[key]}, but is {shape}")
    return checked


@torch.no_grad()
def copy_into(values: State, targets: Mapping[str, Tensor]) -> None:
    """Fills each target with the value of its key."""
    for key, target in targets.items():
        target.copy_(values[key])


def check_nonlinearity(module: nn.Module, *expected: str) -> None:
    """Raises a ValueError unless the module's nonlinearity is one of these."""
    nonlinearity = getattr(module, "nonlinearity", None)
    if nonlinearity not in expected:
        raise ValueError(
            f"module's nonlinearity must be {' or '.join(map(repr, expected))}, "
            f"but is {nonlinearity!r}"
        )


def _is_h0(key: str) -> bool:
    """The zeros that the authors' loop keeps as a buffer."""
    return key.split(".")[-1] == "h0"


def _modern(key: str) -> str:
    """A key of the authors' first version, loop, or DataParallel as one of their last version."""
    key = key.removeprefix("module.").replace(".cells.0.", ".")
    key = re.sub(r"^DIs\.(\d+)\.(weight|bias)$", r"DIs.\1.fc.\2", key)
    key = re.sub(r"^RNNs\.(\d+)\.weight_hh$", r"RNNs.\1.indrnn1.weight_hh", key)
    return re.sub(r"^BNs\.(\d+)\.bn\.", r"RNNs.\1.norm1.bn.", key)


def _authors_names(module: nn.Module) -> dict[str, str]:
    """For each name in the module's state dict, the authors'."""
    _check_authors(module)
    names: dict[str, str] = {}

    def act(ours: str, theirs: str, tail: str = "") -> None:
        names[f"{ours}weight_hh{tail}"] = f"{theirs}.indrnn1.weight_hh"
        for name in _NORM:
            names[f"{ours}norm{tail}.{name}"] = f"{theirs}.norm1.bn.{name}"

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
        linear("input.weight", "input.bias", "features.fc0")
        for i in range(module.num_blocks):
            block = f"features.resblock{i + 1}"
            act(f"blocks.{i}.first.", f"{block}.IndRNNwithBN1")
            unit(f"blocks.{i}.second.", f"{block}.fc1", f"{block}.IndRNNwithBN2")
            linear(f"blocks.{i}.output.weight", f"blocks.{i}.output.bias", f"{block}.fc2")
        act("last.", "features.IndRNNwithBN_last")
    elif isinstance(module, DenseIndRNN):
        unit("first.", "features.fc0", "features.IndRNNwithBN0")
        parts: Any
        for i, parts in enumerate(module.blocks):
            for j in range(len(parts["dense"])):
                layer = f"features.denseblock{i + 1}.denselayer{j + 1}"
                pair = f"blocks.{i}.dense.{j}"
                unit(f"{pair}.bottleneck.", f"{layer}.fc1", f"{layer}.IndRNNwithBN1")
                unit(f"{pair}.layer.", f"{layer}.fc2", f"{layer}.IndRNNwithBN2")
            last = i == len(module.blocks) - 1
            end = "features.lastlayer" if last else f"features.transition{i + 1}"
            unit(f"blocks.{i}.transition.", f"{end}.fc", f"{end}.IndRNNwithBN")
    return names


def _check_authors(module: nn.Module) -> None:
    """What the authors' networks can be."""
    if not isinstance(module, IndRNN | IndRNNCell | ResidualIndRNN | DenseIndRNN):
        raise TypeError(
            "module must be an IndRNN, IndRNNCell, ResidualIndRNN or DenseIndRNN, "
            f"but is {type(module).__name__}"
        )
    if any(getattr(part, "zoneout", 0) for part in module.modules()):
        raise ValueError("module's zoneout must be 0: the authors' networks have none")
    if getattr(module, "bidirectional", False):
        raise ValueError("module must have one direction, but is bidirectional")
    for part in module.modules():
        if isinstance(part, StepBatchNorm | SequenceLayerNorm):
            raise ValueError(
                f"module's norm must be 'batch' or None, but is a {type(part).__name__}"
            )
        if isinstance(part, IndRNN | IndRNNCell):
            check_nonlinearity(part, "relu")
        elif isinstance(part, Unit) and part.options["nonlinearity"] != "relu":
            nonlinearity = part.options["nonlinearity"]
            raise ValueError(f"module's nonlinearity must be 'relu', but is {nonlinearity!r}")
