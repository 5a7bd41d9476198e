"""The recurrence and the layer on GPUs, as the operators call them."""

from .launch_projection import indrnn_forward, projected_backward
from .launch_scan import scan_backward, scan_forward

__all__ = ["indrnn_forward", "projected_backward", "scan_backward", "scan_forward"]
