"""Without a GPU, Triton's kernels run in its interpreter, which must be chosen before triton is
imported. How fast the machine is decides no test: hypothesis has no deadline."""

import os

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # bench/gpu.sh runs the tests that do without it
    pass
else:
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# torch.compile traces and compiles in each run of the tests. A graph that it kept from an earlier
# run is found by the code of the graph, which does not change with our fake results: it would hide
# that they have become wrong. Read when torch._inductor is imported, also by a subprocess.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"


@pytest.fixture
def poisoned_memory():
    """What is allocated is NaN until written."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
