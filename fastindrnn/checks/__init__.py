"""What the functions and layers ask of their arguments: one clear error each, raised before
anything is computed."""

from .tensors import (
    check_dtype,
    check_floating,
    check_input,
    check_layer,
    check_lengths,
    check_like,
    check_recurrence,
    check_resets,
    check_state,
    check_step,
)
from .transforms import refuse_gradient_transforms, refuse_script, refuse_tangents
from .values import (
    check_bools,
    check_direction,
    check_module,
    check_number,
    check_options,
    check_probabilities,
    check_recurrent_max,
    check_sizes,
)

__all__ = [
    "check_bools",
    "check_direction",
    "check_dtype",
    "check_floating",
    "check_input",
    "check_layer",
    "check_lengths",
    "check_like",
    "check_module",
    "check_number",
    "check_options",
    "check_probabilities",
    "check_recurrence",
    "check_recurrent_max",
    "check_resets",
    "check_sizes",
    "check_state",
    "check_step",
    "refuse_gradient_transforms",
    "refuse_script",
    "refuse_tangents",
]
