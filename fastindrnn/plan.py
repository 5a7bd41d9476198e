"""Which way a call takes: all choices among PyTorch's operations and our operators stand here. How
an operator then divides its work: `kernels.gpu.ways`, `kernels.gpu.model` and `kernels.cpu.plan`.

    step                    one time step, by PyTorch's own operations
    stack                   all layers in one operator, whose backward goes through all of them
    both directions         a layer and its reversed twin in one operator: one product for both
    layer                   projection and recurrence in one operator, for each layer and direction
    projection then scan    a product of PyTorch's, then the operator of the recurrence alone
    scan                    the operator of the recurrence alone: there is no projection
    reference               plain PyTorch, the definition

All ways compute the same outputs and the same gradients, to rounding: tests/test_plan.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .ops import backend
from .options import Extents, Parameters, Recurrence, Strategy

Way = Literal[
    "step", "stack", "both directions", "layer", "projection then scan", "scan", "reference"
]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which way a call takes, and why. `print` shows both."""

    way: Way
    why: str

    def __str__(self) -> str:
        return f"{self.way}: {self.why}"


_REFERENCE = Plan("reference", "fastindrnn.backend('reference') asks for plain PyTorch")
_ZONEOUT = Plan("projection then scan", "zoneout acts between the projection and the recurrence")
_NORM_BEFORE = Plan("projection then scan", "the norm stands between projection and recurrence")
_STEP = Plan(
    "step", "one time step of relu: PyTorch's own operations take less time than an operator's call"
)
_SCAN = Plan("scan", "the recurrence has no projection of its own")
_CLIPPED_RESULTS = Plan(
    "projection then scan",
    "grad_clip_mode='result' clips the gradient of W x + b, which must be a tensor for that",
)
_NORM_BY_DIRECTION = Plan("layer", "each direction has a norm of its own behind it")
_RESETS_BY_DIRECTION = Plan("layer", "a reset acts one step earlier in the reversed direction")
_BOTH = Plan("both directions", "nothing stands between the two directions of a layer")
_STACK = Plan("stack", "training, and nothing stands between the layers")
_ONE_LAYER = Plan("layer", "there is one layer")
_SOMETHING_BETWEEN = Plan("layer", "norm or dropout stands between the layers")
_INFERENCE = Plan("layer", "no gradient will be asked for, so that no layer's output is kept")
_EXPORT = Plan("layer", "an exported program shows layer by layer")

# The state's dtypes, which are those of the input as well.
_STATE_DTYPES = (torch.float32, torch.float64)


def plan(
    x: Tensor,
    layers: Sequence[Parameters],
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
    *,
    norm: Literal["before", "after"] | None = None,
    zoneout: bool = False,
    dropout: bool = False,
    strategy: Strategy = "auto",
) -> Plan:
    """The way of a call of one or more layers, all of the same options.

    Args:
        x: input (B, T, K) or (total, K); (1, K) for one step of a single sequence.
        layers: parameters of each layer, of both directions where the recurrence's direction is
            "both".
        h0: initial states, for one layer or for all, or None.
        extents, recurrence: of the call.
        norm: where a norm stands: before or after the recurrence.
        zoneout, dropout: whether they act in this call.
        strategy: as in `functional.indrnn`.
    """
    if backend.current == "reference":
        return _REFERENCE
    if zoneout:
        return _ZONEOUT
    if norm == "before":
        return _NORM_BEFORE
    has_nothing_between = norm is None and not dropout and strategy == "auto"
    if has_nothing_between and _is_step(x, layers, h0, extents, recurrence):
        return _STEP
    if layers[0].weight is None:
        return _SCAN
    if recurrence.clips_results and torch.is_grad_enabled():
        return _CLIPPED_RESULTS
    if recurrence.direction == "both":
        if norm is not None:
            return _NORM_BY_DIRECTION
        return _BOTH if extents.resets is None else _RESETS_BY_DIRECTION
    if len(layers) == 1:
        return _ONE_LAYER
    if norm is not None or dropout:
        return _SOMETHING_BETWEEN
    if torch.compiler.is_exporting():
        return _EXPORT
    return _STACK if _is_trained(x, layers, h0) else _INFERENCE


def _is_step(
    x: Tensor,
    layers: Sequence[Parameters],
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
) -> bool:
    """Whether `functional.run_step` computes what the operators do.

    It does not in half precision, where the operators' state is float32, nor under autocast, which
    would round the state. On devices other than CPUs and GPUs the operators raise the error that
    names what is missing. A trace of `torch.jit.trace` is to serve other lengths too.
    """
    if x.shape[-2] != 1 or recurrence.nonlinearity != "relu" or recurrence.direction == "both":
        return False
    if recurrence.grad_clip is not None and torch.is_grad_enabled():
        return False
    dtype, device = x.dtype, x.device
    if dtype not in _STATE_DTYPES or backend.current is not None or not extents.are_whole():
        return False
    if device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(device.type):
        return False
    if torch.jit.is_tracing():
        return False
    if h0 is not None and (h0.dtype != dtype or h0.device != device):
        return False
    for layer in layers:
        u, weight = layer.u, layer.weight
        if u.dtype != dtype or u.device != device:
            return False
        if weight is not None and (weight.dtype != dtype or weight.device != device):
            return False
    return True


def _is_trained(x: Tensor, layers: Sequence[Parameters], h0: Tensor | None) -> bool:
    """Whether a backward may come."""
    if not torch.is_grad_enabled():
        return False
    parameters = [tensor for layer in layers for tensor in layer.present()]
    return any(tensor is not None and tensor.requires_grad for tensor in (x, h0, *parameters))
