"""The recurrence and the layer on CPUs, as the operators call them."""

from .calls import indrnn_forward, projected_backward, scan_backward, scan_forward
from .openmp import threads

__all__ = ["indrnn_forward", "projected_backward", "scan_backward", "scan_forward", "threads"]
