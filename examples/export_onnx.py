"""Export to ONNX, with time and batch left open, and the same outputs in onnxruntime.

python examples/export_onnx.py FILE.onnx        needs onnx, onnxscript and onnxruntime
"""

import sys

import numpy as np
import onnxruntime
import torch

import fastindrnn
from fastindrnn import IndRNN


def main(path):
    torch.manual_seed(0)
    # Norms are folded into the weights that read them: the last layer's alone is left in the graph.
    rnn = fastindrnn.fold.fold_norms(IndRNN(5, 16, 2, norm="batch", batch_first=True).eval())
    x = torch.randn(2, 10, 5)
    B, T = torch.export.Dim("B", min=2), torch.export.Dim("T", min=2)
    program = torch.onnx.export(
        rnn, (x,), dynamo=True, verbose=False, dynamic_shapes={"input": {0: B, 1: T}},
        custom_translation_table=fastindrnn.onnx.translations(),
    )  # fmt: skip
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 50, 5)
    output, _ = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = rnn(x)[0].numpy()
    error = np.abs(output - expected).max()
    print(f"{path}: outputs differ by {error:.1e} at most")
    return error


if __name__ == "__main__":
    main(sys.argv[1])
