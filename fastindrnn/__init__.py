"""IndRNN for PyTorch: compiled loops on CPUs, Triton kernels for GPUs, parallel over time."""

from . import fold, functional, init, interop, memory, onnx
from .blocks import Bidirectional, DenseIndRNN, ResidualIndRNN
from .cell import IndRNNCell
from .constraint import constrain_, constrain_after_step, recurrent_max_for
from .functional import indrnn, indrnn_scan, last_output
from .layers import IndRNN
from .ops import backend
from .optim import parameter_groups
from .units import Stack

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
    "onnx",
    "parameter_groups",
    "recurrent_max_for",
]
