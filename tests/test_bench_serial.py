"""What the speed measurements compare with: the serial kernel, and layers of other packages."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import emulator
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import Case, gradients_by_formula, inputs
from tolerance import assert_close_to_reference
from torch import nn

from fastindrnn.kernels import reference

SPEED = Path(__file__).parents[1] / "bench" / "speed"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(name):
    """A file of bench/speed, which is not on the path of the tests."""
    spec = importlib.util.spec_from_file_location(name, SPEED / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers = load("peers")
cases = st.builds(
    Case,
    B=st.sampled_from([1, 2, 5]),
    T=st.integers(1, 20),
    N=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    time_first=st.booleans(),
    seed=st.integers(0, 2**31),
)


@pytest.fixture(scope="module")
def serial():
    pytest.importorskip("triton", reason="Triton is for Linux")
    return load("serial")


@pytest.mark.triton
@pytest.mark.usefixtures("poisoned_memory")
class TestSerial:
    @emulator.examples(40)
    @given(cases)
    def test_against_reference(self, serial, case):
        (a, u, _, _), (grad_h, _) = inputs(case)
        h = torch.full_like(a, torch.nan).to(DEVICE)
        returned = serial.serial_scan_forward(a.to(DEVICE), u.to(DEVICE), h)
        assert returned is h
        h = h.cpu()
        expected, _ = reference.scan(a.double(), u.double())
        loop, _ = reference.scan(a, u)
        assert_close_to_reference(h, expected, loop, what="h")

        actual = serial.serial_backward(*(x.to(DEVICE) for x in (grad_h, h, u)))
        g, relu = (grad_h, None, h, u, None), {"nonlinearity": "relu", "reverse": False}
        loop = gradients_by_formula(*g, **relu)
        double = [None if x is None else x.double() for x in g]
        expected = gradients_by_formula(*double, **relu)
        for what, *three in zip(("grad_a", "grad_u"), actual, expected, loop, strict=False):
            assert three[0].dtype == case.dtype
            assert_close_to_reference(three[0].cpu(), *three[1:], what=what)

    def test_layer_is_the_product_and_the_scan_in_place(self, serial):
        generator = torch.Generator().manual_seed(1)
        x, weight, bias, u = (
            torch.randn(*shape, generator=generator) for shape in ((3, 9, 5), (7, 5), (7,), (7,))
        )
        h = serial.serial_layer_forward(*(tensor.to(DEVICE) for tensor in (x, weight, bias, u)))
        a = x.double() @ weight.double().t() + bias.double()
        expected, _ = reference.scan(a, u.double())
        loop, _ = reference.scan(nn.functional.linear(x, weight, bias), u)
        assert_close_to_reference(h.cpu(), expected, loop)

    def test_several_blocks_in_a_time_first_view(self, serial):
        """(T, B, N) in memory, as published; no whole number of blocks."""
        a = torch.randn(4, 3, 201).transpose(0, 1)
        u = torch.rand(201)
        wide = torch.full((4, 3, 210), 7.0, device=DEVICE)
        h = wide[..., 5:206].transpose(0, 1)
        serial.serial_scan_forward(a.to(DEVICE), u.to(DEVICE), h)
        torch.testing.assert_close(h.cpu(), reference.scan(a, u)[0])
        assert (wide[..., :5] == 7).all(), "wrote outside of h"
        assert (wide[..., 206:] == 7).all(), "wrote outside of h"


COMPILE = """
import importlib.util, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
spec = importlib.util.spec_from_file_location("serial", sys.argv[1])
serial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serial)
counts = {}
for kernel in (serial._serial_fwd_kernel, serial._serial_bwd_kernel):
    types = {"BLOCK": "constexpr", "u_ptr": "*fp32", "grad_u_ptr": "*fp32"}
    signature = {
        name: types.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, {"BLOCK": serial.BLOCK})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=serial.OPTIONS)
    ptx = compiled.asm["ptx"]
    counts[kernel.__name__] = {word: ptx.count(word) for word in ("ld.global", "st.global", ".v2.")}
    counts[kernel.__name__]["shared"] = compiled.metadata.shared
print(json.dumps(counts))
"""


def test_a_thread_loads_one_value_a_step():
    """The design that is compared with: no rows in flight, no vectors, no shared memory."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(SPEED / "serial.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    counts = json.loads(found.stdout)
    alone = {".v2.": 0, "shared": 0}
    # u and a. u and the last h; g and the h before it; g of the first step, which stands apart.
    assert counts["_serial_fwd_kernel"] == {"ld.global": 2, "st.global": 1, **alone}
    assert counts["_serial_bwd_kernel"] == {"ld.global": 5, "st.global": 3, **alone}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a module of this name and text on the path, until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    kept = dict(sys.modules)

    def write(module, text):
        path = tmp_path / Path(*module.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - set(kept):
        if name.split(".")[0] in ("minGRU_pytorch", "sru", "fla"):
            del sys.modules[name]


def offered(name, dtype=torch.float32):
    found = peers.extras(torch.device("cpu"), dtype)
    assert list(found) == list(peers.PACKAGES)
    return found[name]


def test_an_absent_package_gives_a_word(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = peers.extras(torch.device("cpu"), torch.float32)
    assert set(found.values()) == {"not installed"}
    assert len(found) == 7


def test_a_package_for_gpus_is_not_imported_without_one(install):
    install("fla.ops.hgrn", "raise AssertionError('imported')")
    assert offered("fla-core") == "needs a GPU"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("raise OSError('libcuda.so: no such file\\nsecond line')", "OSError: libcuda.so: no such"),
        ("import a_package_that_nobody_has", "ModuleNotFoundError: No module named"),
        ("", "AttributeError: "),
        ("from torch.nn import Identity as minGRU", "RuntimeError: "),  # no gradient
        (
            "from torch import nn\ndef minGRU(dim): return nn.Linear(dim, 2 * dim)",
            "ValueError: the output is (2, 40, 128), not (2, 40, 64)",
        ),
    ],
)
def test_a_broken_package_gives_the_first_line_of_its_error(install, text, word):
    install("minGRU_pytorch", text)
    said = offered("minGRU-pytorch")
    assert said.startswith(word)
    assert "\n" not in said


def test_a_package_that_warns_is_offered_on_the_dtype_asked_for(install):
    install(
        "minGRU_pytorch",
        """
        import warnings
        from torch import nn
        warnings.warn("compiled without something")
        def minGRU(dim):
            return nn.Linear(dim, dim)
        """,
    )
    make = offered("minGRU-pytorch", torch.bfloat16)
    assert make(6)(torch.ones(2, 3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "log space" in make.__doc__


def test_sru_gets_time_first_and_no_bfloat16(install):
    install(
        "sru",
        """
        import torch
        class SRU(torch.nn.Linear):
            def __init__(self, input_size, hidden_size, num_layers):
                super().__init__(input_size, hidden_size)
            def forward(self, x):
                return super().forward(x).cumsum(0), None  # time is the first dimension
        """,
    )
    assert offered("sru", torch.bfloat16) == "no bfloat16"
    layer = offered("sru")(5)
    x = torch.randn(2, 7, 5)
    (sru,) = layer.parts
    expected = nn.functional.linear(x, sru.weight, sru.bias).cumsum(1)
    torch.testing.assert_close(layer(x), expected)


def linear_recurrence(gate, token, time):
    """h_t = gate_t * h_{t-1} + token_t along a dimension."""
    rows, h = [], 0
    for g, x in zip(gate.unbind(time), token.unbind(time), strict=True):
        h = g * h + x
        rows.append(h)
    return torch.stack(rows, time)


def test_adapters_compute_what_they_say():
    """With the packages' functions replaced by loops of the signatures that they document."""
    x = torch.randn(2, 9, 64)

    def scan(forget, inputs):  # (B, C, T)
        assert forget.is_contiguous()
        assert inputs.is_contiguous()
        return linear_recurrence(forget, inputs, 2)

    layer = peers._accelerated_scan(types.SimpleNamespace(scan=scan), 64)
    token, gate = (part(x) for part in layer.parts)
    torch.testing.assert_close(layer(x), linear_recurrence(gate.sigmoid(), token, 1))

    def chunk_hgrn(x, g):  # (B, T, D), the gate's logarithm
        return linear_recurrence(g.exp(), x, 1), None

    layer = peers._hgrn(types.SimpleNamespace(chunk_hgrn=chunk_hgrn), 64)
    inputs, gate = (part(x) for part in layer.parts)
    f = gate.sigmoid()
    torch.testing.assert_close(layer(x), linear_recurrence(f, (1 - f) * inputs, 1))


@pytest.mark.parametrize(("features", "heads"), [(128, 2), (200, 25)])
def test_flashrnn_gets_its_shapes(features, heads):
    def flashrnn(Wx, R, b, function, backend, dtype):  # B T G N D, G N D D, G N D
        assert (function, backend, dtype) == ("elman", "cuda_fused", "float32")
        head = features // heads
        assert Wx.shape == (2, 9, 1, heads, head)
        assert R.shape == (1, heads, head, head)
        assert b.shape == (1, heads, head)
        states = Wx.movedim(2, 0).cumsum(2)  # S B T N D
        return states, states[:, :, -1:]

    layer = peers._flashrnn(types.SimpleNamespace(flashrnn=flashrnn), features)
    x = torch.randn(2, 9, features)
    torch.testing.assert_close(layer(x), layer.parts[0](x).cumsum(1))
