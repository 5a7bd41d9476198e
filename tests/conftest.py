"""Without a GPU, Triton's kernels run in its interpreter, or with --emulator as compiled code on an
emulator. Which of the two must be known before triton is imported. How fast the machine is decides
no test: hypothesis has no deadline. Nor does chance: what a test draws follows from its name and
from --seed, so that a run that fails can be repeated, alone or with other tests before it."""

import os

# Threads of OpenMP that have nothing to do sleep. Otherwise they spin, and where another process
# wants the cores, the threads that have work wait for them. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import emulator
import pytest
import torch

try:
    import hypothesis
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # bench/gpu.sh runs the tests that do without it
    hypothesis = None
else:
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")


def pytest_addoption(parser):
    group = parser.getgroup("fastindrnn")
    group.addoption(
        "--emulator",
        metavar="FOLDER",
        help="compile the Triton kernels and run their tests, and no others, on the emulator of "
        "NVIDIA's instructions in this folder (ptxemu.py, ptxrun.py)",
    )
    group.addoption(
        "--triton",
        metavar="FOLDER",
        action="append",
        default=[],
        help="another version of Triton for -m slow to compile all kernels with",
    )
    group.addoption(
        "--target", choices=list(emulator.FAMILY), default="sm_90", help="what it emulates"
    )
    group.addoption(
        "--seed", metavar="N", type=int, default=0, help="run the tests on other random numbers"
    )


def pytest_configure(config):
    # Where the user's cache folder cannot be written, the loops are compiled anew and the tests
    # last longer.
    unkept = "ignore:a compiled CPU loop cannot be kept:RuntimeWarning"
    config.addinivalue_line("filterwarnings", unkept)
    if config.getoption("emulator"):
        if torch.cuda.is_available():
            raise pytest.UsageError("--emulator is for machines without a GPU")
        emulator.use(config.getoption("emulator"), config.getoption("target"))
    elif not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config, items):
    if not emulator.is_used():
        return
    kept = [item for item in items if item.get_closest_marker("triton")]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_terminal_summary(terminalreporter):
    if emulator.is_used():
        terminalreporter.write_line(emulator.summary())


def seed_generators(config, name):
    """Seeds torch's generator from this name and --seed. Returns the seed."""
    seed = emulator.seed_of(f"{config.getoption('seed')} {name}")
    torch.manual_seed(seed)
    return seed


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    """A module may draw when it is imported."""
    if isinstance(collector, pytest.Module):
        seed_generators(collector.config, collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """A fixture that several tests share draws the same whichever of them is the first."""
    if fixturedef.scope != "function":
        seed_generators(request.config, f"{request.node.nodeid}::{fixturedef.argname}")


@pytest.fixture(autouse=True)
def generators(request):
    """Each test draws from a seed of its own, and so do the examples of hypothesis, which seeds the
    generators of numpy and Python itself."""
    seed = seed_generators(request.config, request.node.nodeid)
    if hypothesis and hypothesis.is_hypothesis_test(request.function):
        hypothesis.seed(seed)(request.function)


@pytest.fixture(autouse=True)
def triton_device(request):
    """Where there is no GPU and the emulator is asked for, Triton's launches run on it."""
    if not emulator.is_used():
        yield
        return
    seed = emulator.seed_of(request.node.nodeid)
    print(f"emulator of {request.config.getoption('target')}, seed {seed}")
    with emulator.device(seed):
        yield


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


@pytest.fixture(autouse=True, scope="session")
def numbers_before_nan():
    """`tl.maximum` and `tl.minimum` of a NaN and a number are the number. Older interpreters, that
    of Triton 3.7 for one, make it the NaN."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    try:
        from triton.runtime.interpreter import InterpreterBuilder
    except ModuleNotFoundError:  # Triton is for Linux
        return
    import numpy as np

    def operation(ufunc):
        return lambda self, lhs, rhs: self.binary_op(lhs, rhs, ufunc)

    InterpreterBuilder.create_maxnumf = operation(np.fmax)
    InterpreterBuilder.create_minnumf = operation(np.fmin)


@pytest.fixture(autouse=True, scope="session")
def language_replaced_once():
    """At each call of a device function, Triton's interpreter looks through its language for what
    to replace, which is half of its time. What the launch, or an earlier call, has replaced is
    skipped."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    try:
        from triton.runtime import interpreter
    except ModuleNotFoundError:  # Triton is for Linux
        return
    import triton.language as tl

    original, languages = interpreter._patch_lang, {}
    nothing = getattr(interpreter, "_LangPatchScope", object)()  # before Triton 3.6 there is none

    def replace_language(function):
        module = function.__module__
        if module not in languages:
            values = function.__globals__.values()
            languages[module] = [x for x in (tl, tl.core) if any(value is x for value in values)]
        if any(tl.core.is_builtin(language.load) for language in languages[module]):
            return original(function)
        return nothing

    interpreter._patch_lang = replace_language


@pytest.fixture
def products_of_bfloat16(monkeypatch):
    """Triton's interpreter keeps bfloat16 as integers, and would multiply these in its `dot`."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot(self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
