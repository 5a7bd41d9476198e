"""Micro-benchmarks against regressions: the time of each call, before and after a change.

    pytest bench --benchmark-save before        then, after the change,
    pytest bench --benchmark-compare --benchmark-compare-fail median:10%

Each group is one shape; nn.Linear stands beside the layer, as what does not change. Whether results
are right is what tests/ checks, and what others take is what `python -m bench speed` measures.
"""

import pytest
import torch

from bench.speed.candidates import LAYER, LINEAR, SCAN, candidates
from bench.speed.cases import DTYPES, FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING, Case, Inputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(32, 256, 128), (32, 1024, 128), (16, 784, 512), (1, 65536, 256), (1024, 20, 512)]
CALLS = [
    (SCAN, SCAN_FORWARD),
    (SCAN, SCAN_BACKWARD),
    (LAYER, FORWARD),
    (LINEAR, FORWARD),
    (LAYER, TRAINING),
    (LINEAR, TRAINING),
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "what"), CALLS)
def test_time(benchmark, sizes, dtype, name, what):
    benchmark.group = f"{sizes}, {dtype}"
    bind = candidates(Case(sizes, dtype, what), DEVICE)[name]
    function = bind(Inputs.draw(sizes, DTYPES[dtype], DEVICE))

    def finished():
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    finished()  # compiles
    benchmark(finished)
