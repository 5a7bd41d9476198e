"""Weights of other implementations, in and out: the authors' PyTorch networks, the TensorFlow cell,
Haste's layers, `torch.nn.RNN`.

A loader checks every name and shape first and then fills the module in place, in the module's dtype
and on its device; after an error the module is as it was.
"""

from .authors import load_authors, to_authors
from .haste import load_haste, to_haste
from .layers import load_layers
from .rnn import load_rnn, to_rnn
from .tensorflow import load_tensorflow, to_tensorflow

__all__ = [
    "load_authors",
    "load_haste",
    "load_layers",
    "load_rnn",
    "load_tensorflow",
    "to_authors",
    "to_haste",
    "to_rnn",
    "to_tensorflow",
]
