"""ONNX export: onnxruntime gives the same outputs, for other lengths and batches too."""

import pytest
import torch

import fastindrnn.onnx
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.kernels import reference

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODULES = {
    "layers": lambda: IndRNN(5, 6, 2, norm="batch", bidirectional=True),
    "both directions": lambda: IndRNN(5, 6, 2, bidirectional=True),
    "residual": lambda: ResidualIndRNN(5, 6, 1),
    "dense": lambda: DenseIndRNN(5, 2, (1,), norm="layer", bias=False),
    "both ways": lambda: Bidirectional(lambda: IndRNN(5, 6, batch_first=True)),
    **{f: lambda f=f: IndRNN(5, 6, nonlinearity=f) for f in reference.ACTIVATIONS},
}


def export(module, *arguments, **options):
    return torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        verbose=False,
        custom_translation_table=fastindrnn.onnx.translations(),
        **options,
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_runtime_gives_the_same(make):
    torch.manual_seed(0)
    module = make().eval()
    x, lengths = 3 * torch.randn(9, 4, 5), torch.tensor([9, 4, 2, 1])
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    dims = {0: B, 1: T} if module.batch_first else {0: T, 1: B}
    program = export(
        module,
        x.transpose(0, 1) if module.batch_first else x,
        kwargs={"lengths": lengths},
        dynamic_shapes={"input": dims, "lengths": {0: B}},
    )
    model = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    x, lengths = 3 * torch.randn(20, 5, 5), torch.tensor([20, 3, 1, 7, 12])
    x = x.transpose(0, 1) if module.batch_first else x
    values = dict(zip(names, (x.numpy(), lengths.numpy()), strict=True))
    actual = [torch.from_numpy(value) for value in session.run(None, values)]
    with torch.no_grad():
        torch.testing.assert_close(actual, list(module(x, lengths=lengths)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_resets_are_refused():
    x, resets = torch.randn(9, 3, 5), torch.zeros(9, 3, dtype=torch.bool)
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        export(IndRNN(5, 6), x, kwargs={"resets": resets})
    causes, error = [], caught.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert any("neither resets nor packed sequences" in cause for cause in causes)
