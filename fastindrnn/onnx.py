"""ONNX: the operators as ONNX's own RNN operator, whose recurrent matrix is then diagonal.

    program = torch.onnx.export(module, (x,), dynamo=True,
                                custom_translation_table=fastindrnn.onnx.translations())

Time and batch may be dynamic, and `lengths` may be given; the operator has neither `resets` nor
packed sequences. A runtime multiplies with the whole recurrent matrix, which is N times the work of
the recurrence, in a graph that does not grow with time.

Without the table the export ends with "No ONNX function found for fastindrnn.indrnn".
"""

from collections.abc import Callable
from typing import Any

import torch

from .options import Parameters

# The operator's activation, and the bound of what goes into it.
_ACTIVATIONS: dict[str, tuple[str, float | None]] = {
    "relu": ("Relu", None),
    "identity": ("Affine", None),
    "hardtanh": ("Affine", 1.0),
    "relu6": ("Relu", 6.0),
    "tanh": ("Tanh", None),
}


def translations() -> dict[Callable, Callable]:
    """The table for the argument `custom_translation_table` of `torch.onnx.export`.

    Returns:
        For each operator that an exported program can hold, the function that translates it.

    Raises:
        ImportError: onnxscript is not installed.
        ValueError: at export, for resets or packed sequences.

    Source: the operator RNN in ONNX's specification, version 14.
    """
    from onnxscript import opset18

    op: Any = opset18

    def rnn(
        x: Any,  # (B, T, K)
        layer: Parameters,
        h0: Any,  # (B, N) or None
        lengths: Any,
        nonlinearity: str,
        direction: str,
        neurons: int | None = None,
    ) -> tuple[Any, Any]:
        weight, bias, u = layer.weight, layer.bias, layer.u
        activation, clip = _ACTIVATIONS[nonlinearity]
        first = op.Constant(value_ints=[0])
        if bias is not None:
            # One bias of the input, one of the state.
            bias = op.Unsqueeze(op.Concat(bias, op.Mul(bias, 0.0), axis=0), first)
        attributes: dict[str, Any] = {} if clip is None else {"clip": clip}
        if activation == "Affine":
            attributes |= {"activation_alpha": [1.0], "activation_beta": [0.0]}
        output, last = op.RNN(
            op.Transpose(x, perm=[1, 0, 2]),
            op.Unsqueeze(weight, first),
            op.Unsqueeze(op.Mul(diagonal(u), u), first),
            bias,
            None if lengths is None else op.Cast(lengths, to=6),  # int32
            None if h0 is None else op.Unsqueeze(h0, first),
            activations=[activation],
            direction=direction,
            hidden_size=u.shape[0] if neurons is None else neurons,
            **attributes,
        )
        h = op.Transpose(op.Squeeze(output, op.Constant(value_ints=[1])), perm=[1, 0, 2])
        return h, op.Squeeze(last, first)

    def diagonal(u: Any) -> Any:
        """The identity matrix of u's size and dtype."""
        return op.EyeLike(
            op.MatMul(
                op.Unsqueeze(u, op.Constant(value_ints=[1])),
                op.Unsqueeze(u, op.Constant(value_ints=[0])),
            )
        )

    def indrnn(
        x,
        weight,
        bias,
        u,
        h0,
        lengths,
        cu_seqlens,
        resets,
        nonlinearity,
        direction,
        grad_clip=None,
        strategy="auto",
    ):
        if cu_seqlens is not None or resets is not None:
            raise ValueError("ONNX's RNN operator knows neither resets nor packed sequences")
        if direction != "both":
            return rnn(x, Parameters(weight, bias, u), h0, lengths, nonlinearity, direction)
        neurons = u.shape[0] // 2

        def half(value: Any, first: int, axis: int = 0) -> Any:
            if value is None:
                return None
            begin, end = (op.Constant(value_ints=[n]) for n in (first, first + neurons))
            return op.Slice(value, begin, end, op.Constant(value_ints=[axis]))

        parts = []
        for first, towards in ((0, "forward"), (neurons, "reverse")):
            layer = Parameters(half(weight, first), half(bias, first), half(u, first))
            state = half(h0, first, 1)
            parts.append(rnn(x, layer, state, lengths, nonlinearity, towards, neurons))
        (h, h_n), (h_back, h_n_back) = parts
        return op.Concat(h, h_back, axis=-1), op.Concat(h_n, h_n_back, axis=-1)

    def scan(a, u, h0, lengths, cu_seqlens, resets, nonlinearity, direction, grad_clip=None):
        options = lengths, cu_seqlens, resets, nonlinearity, direction
        return indrnn(a, diagonal(u), None, u, h0, *options)

    return {torch.ops.fastindrnn.indrnn.default: indrnn, torch.ops.fastindrnn.scan.default: scan}
