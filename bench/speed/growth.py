"""How cost grows with T, B and N: slopes in logarithms, 1 where twice as much takes twice as
long."""

import math
import statistics

from bench.speed.budget import Skipped
from bench.speed.candidates import GRU, LAYER, LINEAR, LOOP, LSTM, RNN, SCAN, SERIAL
from bench.speed.cases import FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING, Case

WANTED = [  # (what, layers, whose time)
    (SCAN_FORWARD, 0, (SCAN,)),
    (SCAN_BACKWARD, 0, (SCAN,)),
    (FORWARD, 1, (LAYER, LINEAR)),
    (TRAINING, 1, (LAYER, LINEAR)),
]
PEERS = RNN, GRU, LSTM, LOOP, SERIAL  # forward, where T grows


def series(name, what):
    return f"{name}, {what}"


def slope(points):
    """Of a straight line through the logarithms, by least squares; None for fewer than 3."""
    if len(points) < 3:
        return None
    fit = statistics.linear_regression(
        *zip(*([math.log(v) for v in p] for p in points), strict=True)
    )
    return round(fit.slope, 3)


def measure(bench, sweep):
    """The record of a sweep: {series: [[value, median ms], ...]}, and its slopes."""
    ms = {}
    for value, sizes in zip(sweep.values, sweep.sizes(), strict=True):
        try:
            inputs = bench.draw(sizes, sweep.dtype)
        except Skipped:
            break
        for what, layers, names in WANTED:
            if sweep.variable == "T" and what == FORWARD:
                names += PEERS
            found = bench.measure(Case(sizes, sweep.dtype, what, layers), inputs, names)
            for name, times in found["ms"].items():
                ms.setdefault(series(name, what), []).append([value, times["median"]])
    shape = [str(value or name) for name, value in zip("BTN", sweep.base, strict=True)]
    return {
        "variable": sweep.variable,
        "sizes": ", ".join(shape),
        "dtype": sweep.dtype,
        "ms": ms,
        "slopes": {name: slope(points) for name, points in ms.items()},
    }
