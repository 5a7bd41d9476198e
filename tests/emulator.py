"""Compiled Triton kernels under test on a machine without a GPU: `pytest --emulator FOLDER`.

The folder's emulator runs the PTX that Triton compiles, on CPU tensors, with the CTAs of a launch
and the warps of a CTA in random order. A launch in which the emulator finds a race fails its test.
The order depends on the name of the test alone, so that it can be repeated.

Two kinds of report are no race. Where a tensor has fewer elements than a program has threads,
several warps hold copies; in a reduction each of them stores the same partial result in the same
place. And a scan in place may load a channel in one lane, hand it to another by a shuffle and store
it from there: the store waits for the load.
"""

import contextlib
import importlib
import os
import sys
import zlib
from collections import Counter
from unittest import mock

import pytest

FAMILY = {"sm_80": "mma", "sm_90": "wgmma"}  # of matrix instructions, which decides the tiles

_NO_RACES = ("shared: write after write, same value", "global: write after read, between lanes")

_target = None
_ptxrun = None
_counts: Counter[str] = Counter()


def use(folder, target):
    """Takes the emulator from this folder, for this target, until the process ends. To be called
    before triton is imported."""
    global _ptxrun, _target
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path.insert(0, folder)
    try:
        _ptxrun = importlib.import_module("ptxrun")
    except ImportError as error:
        raise pytest.UsageError(f"--emulator {folder}: {error}") from error
    finally:
        sys.path.remove(folder)
    _target = target


def family():
    """The target's kind of matrix instructions, a key of `model.FAMILIES`."""
    return FAMILY[_target]


def is_used():
    return _target is not None


def seed_of(name):
    return zlib.crc32(name.encode())


def examples(count):
    """The settings of a property test with this many examples, or on the emulator a quarter of
    them, because each takes seconds to compile and to run."""
    from hypothesis import settings  # which is missing where bench/gpu.sh runs other tests

    return settings(max_examples=count // 4 if is_used() else count, deadline=None)


def races_of(found):
    """The races that the emulator found in a launch, {(kind, first line, second line): (number,
    example)}, without the kinds that are none."""
    return {key: value for key, value in found.races.items() if key[0] not in _NO_RACES}


class _Launches(list):
    """(name of the kernel, what the emulator found) of each launch, checked as it is appended."""

    def __init__(self, may_race):
        super().__init__()
        self.may_race = may_race

    def append(self, launch):
        name, found = launch
        super().append(launch)
        races = races_of(found)
        _counts["launches"] += 1
        _counts["with a race"] += bool(races)
        assert self.may_race or not races, f"{name} on {_target}: {races}"


@contextlib.contextmanager
def device(seed, may_race=False, resident=None):
    """Inside, launches run on the emulator, with CTAs and warps in an order that the seed decides.

    Yields the list of launches. may_race: whether a launch with a race is only listed; if not, it
    raises an AssertionError. resident: how many CTAs run at once, None for 4096 threads.
    """
    from fastindrnn.kernels.gpu import devices, model

    from fastindrnn import functional

    def device_of(x):
        return model.Device(family(), 1, 32, 1 << 20)

    launches = _Launches(may_race)
    with (
        mock.patch.object(_ptxrun, "launches", launches),
        mock.patch.object(devices, "device_of", device_of),
        mock.patch.object(functional, "check_backend", return_value=None),
        _ptxrun.device(
            _target, order="random", schedule="random", seed=seed, resident=resident, count=False
        ),
    ):
        yield launches


def summary():
    launches, races = _counts["launches"], _counts["with a race"]
    return f"emulator of {_target}: {launches} launches, {races} with a race"
