"""One case measured: every candidate that can be, in turn; the record for the JSON."""

import functools
import math

import torch

from bench.speed import budget, candidates, checks, memory, peers, timing
from bench.speed.budget import Skipped
from bench.speed.candidates import COPY, LAYER, LINEAR, OURS, RELU, SCAN
from bench.speed.cases import DTYPES, FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING
from bench.speed.inputs import Inputs

QUICK = 0.2  # seconds of a first call, below which a second one warms up
FORWARD_KEEPS = 6  # (B, T, N) tensors of a forward alone, at most: four gates, input and output
SLOW = 2.0  # seconds expected, above which there is no warm-up: short calls have been made
REFERENCES = {True: (LAYER, LINEAR, COPY), False: (SCAN, COPY, RELU)}  # by whether there are layers


class Bench:
    """Measures cases on one device."""

    def __init__(self, device, rounds, limits):
        self.device, self.rounds, self.limits = torch.device(device), rounds, limits
        self.clock = timing.Clock(self.device)
        self.extras = functools.cache(lambda dtype: peers.extras(self.device, DTYPES[dtype]))
        self.seconds = {}  # of a call, measured or predicted, by (name, case)

    def absent(self, dtype):
        """{name: a word on why there is none} for the extras that there are not."""
        return {name: word for name, word in self.extras(dtype).items() if isinstance(word, str)}

    def draw(self, sizes, dtype):
        """Inputs; raises `Skipped` where there is no memory to do the least with them."""
        budget.check_memory(4 * math.prod(sizes) * DTYPES[dtype].itemsize, self.device)
        return Inputs.draw(sizes, DTYPES[dtype], self.device)

    def measure(self, case, inputs, only=None):
        """The record of a case: times, ratios and memory of each candidate, or why there are none.

        only: the candidates wanted; all by default.
        """
        found, rnn = self.candidates(case, only)
        record = {
            "sizes": dict(zip("BTN", case.sizes, strict=True)),
            "dtype": case.dtype,
            "layers": case.layers,
            "what": case.what,
            "ms": {},
            "ratios": {},
            "memory_bytes": {},
            "skipped": {},
        }
        ours, functions, h = LAYER if case.layers else SCAN, {}, None
        try:
            self.check_memory(case, found[ours], inputs)
            self.check(case, inputs, rnn)
            for name, candidate in found.items():
                try:
                    functions[name], result = self.admit(case, name, candidate, inputs)
                except Skipped as reason:
                    record["skipped"][name] = str(reason)
                    continue
                if name == ours:
                    h = result
                elif candidate.same and self.keeps_state(case, name):
                    self.compare(case, name, h, result)
                del result
        except Skipped as reason:
            record["skipped"] = dict.fromkeys(found, str(reason)) | record["skipped"]
        del h
        if functions:
            record |= self.time(case, functions, found)
        record["memory_bytes"] = {
            name: function.held
            for name, function in functions.items()
            if isinstance(function, memory.Watched)
        }
        return record

    def candidates(self, case, only):
        """{name: candidate}, ours first; and our layers, None for the recurrence."""
        rnn = None
        if not case.layers:
            found = candidates.scan_candidates(case.what == SCAN_BACKWARD, self.device)
        else:
            absent = self.absent(case.dtype)
            extras = {n: make for n, make in self.extras(case.dtype).items() if n not in absent}
            made = candidates.make_layers(
                case.sizes[2], case.layers, DTYPES[case.dtype], self.device, extras
            )
            rnn = made[LAYER]()
            found = candidates.layer_candidates(made, case.what == TRAINING)
            if case.what == FORWARD and case.layers == 1:
                found[COPY] = candidates.copy_candidate()
        return {name: each for name, each in found.items() if only is None or name in only}, rnn

    def check(self, case, inputs, rnn):
        """Our result against the reference."""
        if rnn is not None:
            checks.check_layers(rnn, inputs, case.what == TRAINING)
        elif case.what != SCAN_BACKWARD:  # both directions at once
            checks.check_scan(inputs)

    def keeps_state(self, case, name):
        """Whether the state is float32: in a loop over bfloat16 tensors it is rounded each time."""
        return case.dtype == "float32" or name == candidates.SERIAL

    def compare(self, case, name, h, other):
        """Another implementation's result with ours, if both had a call to warm up."""
        if h is not None and other is not None:
            checks.check_same(f"{case.title()}; {name}", h, other)

    def check_memory(self, case, candidate, inputs):
        if case.what in (TRAINING, SCAN_BACKWARD):
            kept = candidate.keeps * max(case.layers, 1)
        else:
            kept = min(candidate.keeps, FORWARD_KEEPS)
        needed = (kept + 3) * inputs.bytes
        budget.check_memory(needed, self.device)

    def admit(self, case, name, candidate, inputs):
        """A function to time, and what it returned if it has been called to warm up.

        Raises `Skipped` where it cannot be called, or would take too much.
        """
        if candidate.most_steps is not None and case.sizes[1] > candidate.most_steps:
            raise Skipped(
                f"torch.compile unrolls the loop: no more than {candidate.most_steps} steps"
            )
        self.check_memory(case, candidate, inputs)
        try:
            expected = self.expected(case, name, candidate, inputs)
            function, result = candidate.bind(inputs), None
            if isinstance(function, memory.TrainingStep):
                function = memory.Watched(function)
            if expected < SLOW:
                expected, result = self.clock.call(function)
            if expected < QUICK or candidate.most_steps:  # compiled by the first call
                expected = min(expected, self.clock(function))
            self.seconds[name, case] = expected
            return function, result
        except torch.OutOfMemoryError:
            raise Skipped("out of memory") from None
        except Skipped:
            raise
        except Exception as error:  # whatever other people's code may raise
            if name in OURS:
                raise
            word = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            raise Skipped(word[:100]) from None

    def expected(self, case, name, candidate, inputs):
        """Seconds of a call, before it is made; 0 if there is no telling."""
        least = self.least(case, name)
        if not candidate.peer:
            return least
        simple = case.layers <= 1 and case.what in (FORWARD, SCAN_FORWARD)
        limit = self.limits.limit(simple)
        budget.check_seconds(least, limit, at_least=True)
        if candidate.most_steps:  # nothing is compiled for other sizes
            return 0
        seconds = budget.predict(candidate, inputs, self.clock, limit)
        self.seconds[name, case] = seconds
        budget.check_seconds(seconds, limit)
        return max(seconds, least)

    def least(self, case, name):
        """Seconds that a call takes at least, as far as cases that are part of this one say."""
        parts = [
            (1, case.layers, {TRAINING: FORWARD}.get(case.what)),
            (case.layers, 1, case.what if case.layers > 1 else None),
        ]
        known = [
            factor * self.seconds.get((name, type(case)(case.sizes, case.dtype, what, layers)), 0)
            for factor, layers, what in parts
        ]
        return max(known)

    def time(self, case, functions, found):
        """Medians and quartiles, and the ratios to those that others are measured by."""
        # What is slow has its memory watched in its only sample, everything else by the first call.
        functions = {
            name: function.step
            if isinstance(function, memory.Watched) and function.held is not None
            else function
            for name, function in functions.items()
        }
        strides = {
            name: timing.stride(
                self.seconds[name, case],
                self.rounds,
                self.limits.peer if found[name].peer else self.limits.main,
            )
            for name in functions
        }
        seconds = timing.measure(functions, self.rounds, self.clock, strides)
        return {
            "ms": {name: timing.times(own).record() for name, own in seconds.items()},
            "ratios": {
                below: {
                    above: timing.ratio(seconds[above], seconds[below]).record()
                    for above in seconds
                    if above != below
                }
                for below in REFERENCES[case.layers > 0]
                if below in seconds
            },
        }
