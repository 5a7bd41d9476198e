"""Wrong calls of the functions: one clear error each, before anything is computed."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastindrnn
from fastindrnn.functional import indrnn, indrnn_scan

A, U, H0 = torch.randn(2, 4, 3), torch.rand(3), torch.zeros(2, 3)
X, W, BIAS = torch.randn(2, 4, 5), torch.randn(3, 5), torch.zeros(3)
PACKED = {"a": torch.randn(6, 3), "cu_seqlens": torch.tensor([0, 2, 6])}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"a": [1.0]}, TypeError, "a must be a tensor, but is list"),
        ({"a": A.int()}, TypeError, "a must be float32.*int32"),
        ({"a": A[0]}, ValueError, r"a must be \(batch, time, channels\), but is \(4, 3\)"),
        ({"a": A.to("meta")}, ValueError, "u must be on meta"),
        ({"u": U[:2]}, ValueError, r"u must be \(3,\), but is \(2,\)"),
        ({"u": U.long()}, TypeError, "u must be float32.*int64"),
        ({"u": 0.5}, TypeError, "u must be a tensor, but is float"),
        ({"h0": H0[:1]}, ValueError, r"h0 must be \(2, 3\), but is \(1, 3\)"),
        ({"h0": H0.to("meta")}, ValueError, "h0 must be on cpu.*meta"),
        ({"nonlinearity": "selu"}, ValueError, "nonlinearity must be one of relu.*'selu'"),
        (
            {"lengths": torch.tensor([4.0, 2.0])},
            TypeError,
            "lengths must be of an integer.*float32",
        ),
        ({"lengths": torch.tensor([4])}, ValueError, r"lengths must be \(2,\), but is \(1,\)"),
        ({"lengths": torch.tensor([4, 5])}, ValueError, r"lengths must be from 0 to 4.*\[4, 5\]"),
        ({"lengths": torch.tensor([-1, 4])}, ValueError, r"lengths must be from 0 to 4.*\[-1, 4\]"),
        ({"lengths": [4, 4]}, TypeError, "lengths must be a tensor, but is list"),
        ({"lengths": torch.tensor([4, 4]), **PACKED}, ValueError, "lengths and cu_seqlens"),
        ({**PACKED, "a": A}, ValueError, r"a must be \(total, channels\).*\(2, 4, 3\)"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 5])}, ValueError, r"rise from 0 to 6.*\[0, 5\]"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 4, 2, 6])}, ValueError, "rise from 0 to 6"),
        ({**PACKED, "cu_seqlens": torch.tensor([1, 6])}, ValueError, "rise from 0 to 6"),
        ({**PACKED, "cu_seqlens": torch.tensor([])}, TypeError, "cu_seqlens must be of an integer"),
        ({**PACKED, "cu_seqlens": torch.tensor([[0, 6]])}, ValueError, r"must be \(batch \+ 1,\)"),
        ({**PACKED, "h0": H0[:1]}, ValueError, r"h0 must be \(2, 3\)"),
        ({"resets": torch.zeros(2, 4)}, TypeError, "resets must be bool.*float32"),
        ({"resets": torch.zeros(2, 3).bool()}, ValueError, r"resets must be \(2, 4\).*\(2, 3\)"),
        ({"grad_clip": 0.0}, ValueError, "grad_clip must be positive and finite.*0.0"),
        ({"grad_clip": float("inf")}, ValueError, "grad_clip must be positive and finite.*inf"),
        ({"grad_clip": float("nan")}, ValueError, "grad_clip must be positive and finite.*nan"),
        ({"grad_clip": True}, TypeError, "grad_clip must be a number.*bool"),
        ({"direction": "back"}, ValueError, "direction must be 'forward', 'reverse'.*'back'"),
        ({"direction": "both"}, ValueError, "as many channels forwards.*but has 3"),
        ({"direction": True}, TypeError, "direction must be a string, but is bool"),
        ({"grad_clip_mode": "norm"}, ValueError, "grad_clip_mode must be .*'norm'"),
    ],
)
def test_wrong_scan(change, error, words):
    arguments = {"a": A, "u": U, "h0": None} | change
    if "cu_seqlens" in change and "h0" not in change:
        arguments["h0"] = None
    with pytest.raises(error, match=words):
        indrnn_scan(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": X[0]}, ValueError, r"x must be \(batch, time, channels\)"),
        ({"x": X.half().int()}, TypeError, "x must be float32"),
        ({"weight": W.T}, ValueError, r"weight must be \(hidden, 5\) for x \(2, 4, 5\).*\(5, 3\)"),
        ({"weight": W[0]}, ValueError, r"weight must be \(hidden, 5\)"),
        ({"weight": W.double()}, TypeError, "weight must be torch.float32.*float64"),
        ({"weight": None}, TypeError, "weight must be a tensor, but is NoneType"),
        ({"bias": BIAS[:2]}, ValueError, r"bias must be \(3,\), but is \(2,\)"),
        ({"bias": BIAS.double()}, TypeError, "bias must be torch.float32.*float64"),
        ({"weight": W.to("meta")}, ValueError, "weight must be on cpu.*meta"),
        ({"u": torch.rand(5)}, ValueError, r"u must be \(3,\), but is \(5,\)"),
        ({"h0": torch.zeros(2, 5)}, ValueError, r"h0 must be \(2, 3\)"),
        ({"strategy": "fast"}, ValueError, "strategy must be 'auto', 'fused' or 'split'.*'fast'"),
        ({"strategy": None}, TypeError, "strategy must be a string, but is NoneType"),
        (
            {"strategy": "fused", "grad_clip": 1.0, "grad_clip_mode": "result"},
            ValueError,
            "strategy must be 'auto' or 'split' with grad_clip_mode='result'.*'fused'",
        ),
        ({"direction": "both"}, ValueError, r"as many channels forwards.*but has 3"),
    ],
)
def test_wrong_layer(change, error, words):
    with pytest.raises(error, match=words):
        indrnn(**({"x": X, "weight": W, "bias": BIAS, "u": U} | change))


def test_the_scan_has_no_strategy():
    with pytest.raises(TypeError, match="unexpected keyword"):
        indrnn_scan(A, U, strategy="auto")


def test_errors_do_not_depend_on_the_backend():
    import fastindrnn

    with fastindrnn.backend("reference"), pytest.raises(ValueError, match="u must be"):
        indrnn_scan(A, U[:1])
    with fastindrnn.backend("cpu"), pytest.raises(ValueError, match="needs CPU tensors"):
        indrnn_scan(A.to("meta"), U.to("meta"))


@pytest.mark.parametrize("batch_first", [False, True])
def test_last_output(batch_first):
    rnn = fastindrnn.IndRNN(3, 4, norm="batch", batch_first=batch_first).eval()
    x, lengths = torch.randn(3, 7, 3), torch.tensor([7, 3, 0])
    x = x if batch_first else x.transpose(0, 1)
    output, _ = rnn(x, lengths=lengths)
    last = fastindrnn.last_output(output, lengths, batch_first=batch_first)
    rows = output if batch_first else output.transpose(0, 1)
    torch.testing.assert_close(last, torch.stack([rows[0, 6], rows[1, 2], torch.zeros(4)]))
    whole = fastindrnn.last_output(output, batch_first=batch_first)
    torch.testing.assert_close(whole, rows[:, -1])


def test_last_output_of_packed_sequences():
    rnn = fastindrnn.IndRNN(3, 4)
    output, h_n = rnn(pack_sequence([torch.randn(n, 3) for n in (2, 5)], enforce_sorted=False))
    torch.testing.assert_close(fastindrnn.last_output(*pad_packed_sequence(output)), h_n[-1])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1.0],), TypeError, "output must be a tensor, but is list$"),
        (
            (pack_sequence([torch.rand(2, 4)]),),
            TypeError,
            "output must be a tensor, but is PackedSequence: .*pad_packed_sequence",
        ),
        ((torch.rand(3, 4),), ValueError, "3 dimensions"),
        ((torch.rand(0, 2, 4),), ValueError, "no time steps"),
        ((torch.rand(5, 2, 4), torch.tensor([1.0, 2.0])), TypeError, "lengths"),
        ((torch.rand(5, 2, 4), torch.tensor([1, 2, 3])), ValueError, "lengths"),
        ((torch.rand(5, 2, 4), torch.tensor([1, 6])), ValueError, "lengths"),
    ],
)
def test_wrong_arguments_of_last_output(arguments, error, text):
    with pytest.raises(error, match=text):
        fastindrnn.last_output(*arguments)
