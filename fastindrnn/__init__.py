"""IndRNN for PyTorch: compiled loops on CPUs, Triton kernels for GPUs, parallel over time."""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, init, norm
from .bidirectional import Bidirectional
from .cell import IndRNNCell
from .constraint import constrain_, constrain_after_step, recurrent_max_for
from .dense import DenseIndRNN
from .functional import indrnn, indrnn_scan
from .layers import IndRNN
from .ops import backend
from .optim import parameter_groups
from .outputs import last_output
from .residual import ResidualIndRNN
from .stack import Stack

if TYPE_CHECKING:
    from . import fold, interop, memory, onnx

__version__ = "0.1.0"
__all__ = [
    "Bidirectional",
    "DenseIndRNN",
    "IndRNN",
    "IndRNNCell",
    "ResidualIndRNN",
    "Stack",
    "__version__",
    "backend",
    "constrain_",
    "constrain_after_step",
    "fold",
    "functional",
    "indrnn",
    "indrnn_scan",
    "init",
    "interop",
    "last_output",
    "memory",
    "norm",
    "onnx",
    "parameter_groups",
    "recurrent_max_for",
]
# Few programs need these, and layers do not: imported when they are first named.
_ON_DEMAND = ("fold", "interop", "memory", "onnx")


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
