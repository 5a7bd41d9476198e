"""Types for command-line arguments: a word becomes a value, or an error says what it must be."""

import argparse
import math

import torch


class UserError(Exception):
    """A request that cannot be served: `python -m bench` prints the message and exits with 2."""


def integer(minimum):
    """An `argparse` type: a whole number that is at least `minimum`."""

    def parse(word):
        try:
            value = int(word)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} must be a whole number, at least {minimum}")
        return value

    return parse


def positive(word):
    """An `argparse` type: a finite number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{word!r} must be a finite number above 0")
    return value


def sizes(word):
    """An `argparse` type: 'BxTxN', the sizes of a batch, as in 32x1000x128."""
    parts = word.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{word!r} must be BxTxN, as in 32x1000x128")
    return tuple(int(part) for part in parts)


def device(word):
    """An `argparse` type: the name of a device on which a tensor can be made."""
    try:
        torch.zeros(1, device=word).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise argparse.ArgumentTypeError(f"{word!r} cannot be used: {reason}") from None
    return word
