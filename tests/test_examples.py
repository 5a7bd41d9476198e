"""Each program in examples/ runs, in seconds, and learns what it is to show."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    tested = {"language_model", "classify", "forecast", "export_onnx", "larger_model"}
    assert names == tested


@pytest.mark.parametrize("model", ["indrnn", "lstm"])
def test_language_model(model, tmp_path):
    """In few seconds it knows more than which characters are frequent."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 400, encoding="utf-8")
    sizes = ["--size", "32", "--layers", "2", "--steps", "40", "--learning-rate", "0.01"]
    bits = example("language_model").main([str(text), "--model", model, *sizes])
    assert bits < 3.0


def test_classification():
    assert example("classify").main(["--steps", "40"]) > 0.9


def test_forecast(tmp_path):
    forecast, season = example("forecast").main(["--steps", "100"])
    assert forecast < season
    data = tmp_path / "series.txt"
    data.write_text("\n".join(str(i % 12) for i in range(100)))
    assert all(
        math.isfinite(e) for e in example("forecast").main(["--data", str(data), "--steps", "1"])
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert example("export_onnx").main(str(tmp_path / "model.onnx")) < 1e-5


@pytest.mark.parametrize("flags", [[], ["--amp"]])
def test_larger_model(flags):
    torch.manual_seed(0)
    assert math.isfinite(example("larger_model").main(["--steps", "2", *flags]))
