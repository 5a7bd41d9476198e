"""What PyTorch's compilers are told of each operator's results, against what it returns: shapes,
strides and dtypes, for inputs of every layout."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastindrnn
from fastindrnn.functional import indrnn

B, T, K, N = 3, 4, 5, 2


def rows(layout, size):
    """(B, T, size) numbers in memory as the layout says; (total, size) for the packed ones."""
    x = torch.randn(B * T, size) if layout.startswith("packed") else torch.randn(B, T, size)
    order = {
        "time first": (1, 0, 2),
        "channels first": (0, 2, 1),
        "channels, batch, time": (2, 0, 1),
        "channels, time, batch": (2, 1, 0),
        "time, channels, batch": (1, 2, 0),
        "packed, channels first": (1, 0),
    }.get(layout)
    if order is not None:  # contiguous in this order of the dimensions
        inverse = [order.index(i) for i in range(len(order))]
        return x.permute(order).contiguous().permute(inverse)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "some of the channels":
        return torch.cat([x, x], -1)[..., :size]
    if layout == "some of the steps":
        return torch.cat([x, x], 1)[:, ::2]
    if layout == "one row":
        return x[:1, :1].expand(x.shape)
    if layout == "one sequence":
        return x[:1].expand(x.shape)
    if layout == "one step":
        return x[:, :1].expand(x.shape)
    if layout == "one number":
        return x[:1, :1, :1].expand(x.shape)
    return x


LAYOUTS = [
    "batch first",
    "time first",
    "channels first",
    "channels, batch, time",
    "channels, time, batch",
    "time, channels, batch",
    "strided",
    "some of the channels",
    "some of the steps",
    "one row",
    "one sequence",
    "one step",
    "one number",
    "packed",
    "packed, channels first",
]


def vector(strided, size=N):
    return torch.rand(size, 2)[:, 0] if strided else torch.rand(size)


def state(strided, *layers):
    return torch.randn(*layers, N, B).mT if strided else torch.randn(*layers, B, N)


def calls(layout, strided=False):
    """The arguments of every operator, all rows in this layout; small ones strided too."""
    cu_seqlens = torch.tensor([0, 5, 5, B * T]) if layout.startswith("packed") else None
    sequences = None, cu_seqlens, None
    a, x = rows(layout, N), rows(layout, K)
    u, bias, h0 = vector(strided), vector(strided), state(strided)
    weight, second = (torch.randn(k, N).t() for k in (K, N))
    options = "relu", "forward"
    return {
        "scan": [
            (a, u, h0, *sequences, "relu", direction, None) for direction in ("forward", "both")
        ],
        "scan_backward": [
            (rows(layout, N), end, a, u, start, *sequences, "relu", direction, 1.0)
            for end, start, direction in (
                (None, None, "forward"),
                (state(strided), h0, "reverse"),
                (state(strided), h0, "both"),
            )
        ],
        "clip_gradient": [(a, 1.0)],
        "indrnn": [
            (x, weight, some, u, h0, *sequences, "relu", direction, None, "auto")
            for some, direction in ((bias, "forward"), (None, "both"))
        ],
        "stack": [
            (x, [weight, second], biases, [u, u], start, *sequences, *options, None, "auto")
            for biases, start in (([bias, bias], state(strided, 2)), ([], None))
        ],
        "projected_backward": [
            (rows(layout, K), weight.t(), end, a, u, start, *sequences, *options, 1.0, "auto")
            for end, start in ((state(strided), h0), (None, None))
        ],
    }


def forms(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(tuple(y.shape), y.stride(), y.dtype) for y in outputs]


def test_every_operator_is_here():
    names = {
        name.removeprefix("fastindrnn::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastindrnn::")
    }
    assert names == set(calls("batch first"))


@pytest.mark.parametrize(
    ("layout", "strided", "backend"),
    [
        *((layout, strided, "cpu") for layout in LAYOUTS for strided in (False, True)),
        *((layout, False, "triton") for layout in ("time first", "channels, time, batch")),
    ],
)
def test_fake_results_are_as_the_real_ones(layout, strided, backend):
    for name, listed in calls(layout, strided).items():
        operator = getattr(torch.ops.fastindrnn, name).default
        for arguments in listed:
            with fastindrnn.backend(backend):
                real = operator(*arguments)
            with FakeTensorMode() as mode:
                fake = operator(
                    *torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
                )
            assert forms(fake) == forms(real), f"{name} on {layout}"


@pytest.mark.parametrize(
    "layout",
    [
        "channels, time, batch",
        *(pytest.param(layout, marks=pytest.mark.slow)
          for layout in ("time first", "one sequence", "some of the steps", "packed")),
    ],
)  # fmt: skip
def test_opcheck_of_other_layouts(layout):
    def leaf(x):
        return x.requires_grad_(x.is_floating_point() and name != "projected_backward")

    for name, listed in calls(layout).items():
        operator = getattr(torch.ops.fastindrnn, name).default
        leaves = torch.utils._pytree.tree_map_only(torch.Tensor, leaf, listed[0])
        torch.library.opcheck(operator, leaves)


def test_compiled_code_on_other_layouts():
    """By Inductor, which asserts the strides it was told; forward and backward."""

    def loss(x, weight, u):
        return indrnn(x, weight, None, u)[0].sum()

    x = rows("channels, time, batch", K).requires_grad_()
    weight, u = torch.randn(N, K, requires_grad=True), torch.rand(N, requires_grad=True)
    wanted = x, weight, u
    expected = torch.autograd.grad(loss(*wanted), wanted)
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*wanted), wanted), expected)
