"""Measure an IndRNN layer against nn.Linear, torch.relu and PyTorch's own recurrent networks.

Each case is checked against the reference in float64 before it is timed.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fastindrnn.kernels import reference
from torch import nn

from bench import arguments
from bench.environment import describe, slug, write_json
from bench.speed.timing import Times, measure, ratio
from fastindrnn import IndRNN
from fastindrnn.functional import indrnn_scan

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Claim:
    """Time of `above` divided by time of `below`, and where that ratio has to lie."""

    above: str
    below: str
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, value):
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def bound(self):
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    def unbound(self):
        return Claim(self.above, self.below)


SCAN = [
    Claim("scan forward", "torch.relu", at_most=2.0),
    Claim("scan backward", "torch.relu", at_most=3.5),
]
LAYER = [
    Claim("layer forward", "nn.Linear forward", at_most=1.3),
    Claim("layer training step", "nn.Linear training step", at_most=1.4),
]
PEERS = [
    Claim("nn.GRU forward", "layer forward", at_least=20),
    Claim("nn.LSTM forward", "layer forward", at_least=10),
    Claim("nn.RNN relu forward", "layer forward", at_least=10),
    # How much faster a layer could be at all: it has this product to compute.
    Claim("nn.RNN relu forward", "nn.Linear forward"),
]
CASES = [
    ((32, 1000, 128), [*SCAN, *(claim.unbound() for claim in LAYER), *PEERS]),
    ((16, 784, 512), SCAN + LAYER),
]


def add_arguments(parser):
    parser.add_argument("--device", type=arguments.device, default="cpu", help="default: cpu")
    parser.add_argument(
        "--rounds", type=arguments.integer(1), default=30, help="samples per function (default: 30)"
    )
    parser.add_argument(
        "--sizes",
        type=arguments.sizes,
        nargs="+",
        metavar="BxTxN",
        help="measure everything at these sizes instead, without bounds",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON to write (default: bench/results/speed-DEVICE-MACHINE.json; none with --sizes)",
    )


def run(args):
    cases = CASES
    if args.sizes:
        unbound = [claim.unbound() for claim in SCAN + LAYER + PEERS]
        cases = [(sizes, unbound) for sizes in args.sizes]
    environment = describe(args.device)
    if args.out and not args.out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {args.out.parent} for {args.out.name}")
    print(f"{environment['device_name']}; torch {environment['versions']['torch']}, float32")
    if (environment["load_average"] or 0) > 0.5:
        print(f"load average {environment['load_average']:.1f}: figures of a busy machine are void")
    print(f"median of {args.rounds} rounds [quartiles]; a ratio is taken within each round\n")
    print(f"{'B, T, N':<15}{'':<48}{'ms':>9}{'ms':>9}   {'ratio':<23}{'bound':<8}")
    records = []
    for sizes, claims in cases:
        functions = prepare(*sizes, args.device)
        wanted = {name for claim in claims for name in (claim.above, claim.below)}
        functions = {name: function for name, function in functions.items() if name in wanted}
        seconds = measure(functions, args.rounds, args.device)
        for claim in claims:
            records.append(judge(sizes, claim, seconds))
            print(line(records[-1]), flush=True)
    missed = sum(record["holds"] is False for record in records)
    bounded = sum(record["holds"] is not None for record in records)
    if bounded:
        print(f"\n{bounded - missed} of {bounded} bounds hold")
    out = args.out
    if not (out or args.sizes):
        out = RESULTS / f"speed-{slug(args.device)}-{slug(environment['device_name'])}.json"
    if out:
        content = {"benchmark": "speed", "dtype": "float32", "rounds": args.rounds}
        write_json(out, content | {"environment": environment, "records": records})
        print(f"written: {out}")
    return 1 if missed else 0


def judge(sizes, claim, seconds):
    """One claim's measured times, in milliseconds, and ratio, as a record for the JSON."""
    value = ratio(seconds, claim.above, claim.below)
    times = {
        side: asdict(Times.of([1e3 * sample for sample in seconds[name]]))
        for side, name in (("above_ms", claim.above), ("below_ms", claim.below))
    }
    record = {"sizes": dict(zip("BTN", sizes, strict=True)), **asdict(claim), **times}
    holds = claim.holds(value.median) if claim.bound() else None
    return record | {"ratio": asdict(value), "bound": claim.bound(), "holds": holds}


def line(record):
    sizes = ", ".join(map(str, record["sizes"].values()))
    value = record["ratio"]
    verdict = {True: "holds", False: "MISSED", None: ""}[record["holds"]]
    return (
        f"{sizes:<15}{record['above'] + ' / ' + record['below']:<48}"
        f"{record['above_ms']['median']:>9.2f}{record['below_ms']['median']:>9.2f}   "
        f"{value['median']:<6.2f}{'[{lower:.2f}, {upper:.2f}]'.format(**value):<17}"
        f"{record['bound']:<8}{verdict}"
    )


def prepare(B, T, N, device):
    """Every candidate at this size, checked: {name: function without arguments}."""
    torch.manual_seed(0)
    a, grad = torch.randn(2, B, T, N, device=device)
    u = torch.rand(N, device=device)
    check_scan(a, u, grad)
    a_leaf, u_leaf, x = (tensor.clone().requires_grad_() for tensor in (a, u, a))
    h, _ = indrnn_scan(a_leaf, u_leaf)
    layer = IndRNN(N, N, batch_first=True, device=device)
    linear = nn.Linear(N, N, device=device)
    check_layer(layer, a)
    peers = {
        "nn.GRU": nn.GRU(N, N, batch_first=True, device=device),
        "nn.LSTM": nn.LSTM(N, N, batch_first=True, device=device),
        "nn.RNN relu": nn.RNN(N, N, nonlinearity="relu", batch_first=True, device=device),
    }

    def training_step(module):
        result = module(x)
        result = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad(result, [x, *module.parameters()], grad)

    forwards = {
        "torch.relu": lambda: torch.relu(a),
        "scan forward": lambda: indrnn_scan(a, u),
        "layer forward": lambda: layer(a),
        "nn.Linear forward": lambda: linear(a),
    } | {f"{name} forward": lambda module=module: module(a) for name, module in peers.items()}
    return {name: torch.no_grad()(function) for name, function in forwards.items()} | {
        "scan backward": lambda: torch.autograd.grad(h, (a_leaf, u_leaf), grad, retain_graph=True),
        "layer training step": lambda: training_step(layer),
        "nn.Linear training step": lambda: training_step(linear),
    }


def scan_and_gradients(scan, a, u, grad, dtype):
    a, u = (tensor.detach().to(dtype).requires_grad_() for tensor in (a, u))
    h, _ = scan(a, u)
    return h.detach(), *torch.autograd.grad(h, (a, u), grad.to(dtype))


def check_scan(a, u, grad):
    """Values and gradients against the reference in float64; ends the program if they are wrong."""
    expected = scan_and_gradients(reference.scan, a, u, grad, torch.float64)
    plain = scan_and_gradients(reference.scan, a, u, grad, torch.float32)
    actual = scan_and_gradients(indrnn_scan, a, u, grad, torch.float32)
    for what, *results in zip(("h", "grad_a", "grad_u"), actual, plain, expected, strict=True):
        check(f"scan, {what}", *results)


def check_layer(layer, x):
    """The layer's output against the same in float64 by the reference."""
    weight, u, bias = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0
    with torch.no_grad():
        plain, _ = reference.scan(nn.functional.linear(x, weight, bias), u)
        a = nn.functional.linear(x.double(), weight.double(), bias.double())
        expected, _ = reference.scan(a, u.double())
        check("layer, h", layer(x)[0], plain, expected)


def check(what, actual, plain, expected):
    """Ends the program unless `actual` is near `expected`.

    It may be 4 times as far off as plain PyTorch is, or 1e-5 of the largest value.
    """
    error, allowed = ((result.double() - expected).abs().max().item() for result in (actual, plain))
    allowed = max(4 * allowed, 1e-5 * expected.abs().max().item())
    if not error <= allowed:
        sys.exit(f"{what} is wrong: off by {error:.2e}, allowed {allowed:.2e}; nothing was timed")
