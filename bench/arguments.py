"""Types for command-line arguments: a word becomes a value, or an error says what it must be."""

import argparse
import math

import torch


class UserError(Exception):
    """A request that cannot be served: `python -m bench` prints the message and exits with 2."""


def integer(minimum):
    """An `argparse` type: a whole number that is at least `minimum`."""
    return _number(int, f"a whole number, at least {minimum}", lambda value: value >= minimum)


def _number(kind, what, holds):
    def parse(word):
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{word!r} must be {what}")
        return value

    return parse


positive = _number(float, "a finite number above 0", lambda value: value > 0)
at_least_zero = _number(float, "a finite number, at least 0", lambda value: value >= 0)
probability = _number(float, "a probability from 0 to 1", lambda value: 0 <= value <= 1)
growth = _number(float, "a finite number, at least 1", lambda value: value >= 1)


def sizes(word):
    """An `argparse` type: 'BxTxN', the sizes of a batch, as in 32x1000x128."""
    parts = word.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{word!r} must be BxTxN, as in 32x1000x128")
    return tuple(int(part) for part in parts)


def several(choices):
    """An `argparse` type: some of the choices, as 'indrnn,lstm'."""

    def parse(word):
        found = word.split(",")
        if not set(found) <= set(choices) or len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(
                f"{word!r} must be some of {', '.join(choices)}, with commas between them"
            )
        return found

    return parse


def device(word):
    """An `argparse` type: the name of a device on which a tensor can be made."""
    try:
        torch.zeros(1, device=word).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise argparse.ArgumentTypeError(f"{word!r} cannot be used: {reason}") from None
    return word
