"""What the measurements have to show, and whether they do."""

from dataclasses import dataclass

from bench.speed.candidates import COPY, LAYER, LINEAR, LSTM, RELU, SCAN, SERIAL
from bench.speed.cases import FORWARD, SCAN_BACKWARD, SCAN_FORWARD, SIZES, TRAINING
from bench.speed.host import CALL, CALL_SIZES, PLAIN, STEP, THREAD_SIZES, THREADS, threads_word


@dataclass(frozen=True)
class Claim:
    """Time of `above` divided by time of `below`, times `scale`, and where that has to lie."""

    sizes: tuple[int, int, int]
    dtype: str
    layers: int
    what: str
    above: str
    below: str
    at_most: float | None = None
    at_least: float | None = None
    scale: float = 1.0

    def label(self):
        """What the figure is."""
        sizes = ", ".join(map(str, self.sizes))
        ratio = f"{self.above} / {self.below}"
        if (self.above, self.below) == (COPY, SCAN):
            ratio = "share of the bandwidth of a copy"
        return f"{sizes}; {self.dtype}; {self.what}; {ratio}"

    def bound(self):
        return f"<= {self.at_most:g}" if self.at_least is None else f">= {self.at_least:g}"

    def holds(self, value):
        return value <= self.at_most if self.at_least is None else value >= self.at_least

    def judge(self, records):
        """A record for the JSON; None if nobody measured it."""
        for record in records:
            if self.is_about(record):
                ratio = record["ratios"].get(self.below, {}).get(self.above)
                if ratio is None:
                    word = record["skipped"].get(self.above) or record["skipped"].get(self.below)
                    return self.verdict(None) | {"skipped": word or "not measured"}
                return self.verdict(ratio["median"] * self.scale)
        return None

    def is_about(self, record):
        return (
            tuple(record["sizes"].values()),
            record["dtype"],
            record["layers"],
            record["what"],
        ) == (self.sizes, self.dtype, self.layers, self.what)

    def verdict(self, value):
        return {
            "label": self.label(),
            "value": None if value is None else float(f"{value:.4g}"),
            "bound": self.bound(),
            "holds": None if value is None else self.holds(value),
        }


def layer(sizes, dtype, forward, training):
    """Against nn.Linear, which every layer has to do."""
    return [
        Claim(sizes, dtype, 1, FORWARD, LAYER, LINEAR, at_most=forward),
        Claim(sizes, dtype, 1, TRAINING, LAYER, LINEAR, at_most=training),
    ]


def scan_beside_relu(sizes):
    return [
        Claim(sizes, "float32", 0, SCAN_FORWARD, SCAN, RELU, at_most=2.0),
        Claim(sizes, "float32", 0, SCAN_BACKWARD, SCAN, RELU, at_most=3.5),
    ]


def bandwidth(sizes, dtype, forward, backward=None):
    """The forward reads a and writes h as a copy does; the backward moves half as much again."""
    claims = [Claim(sizes, dtype, 0, SCAN_FORWARD, COPY, SCAN, at_least=forward)]
    if backward is not None:
        claims.append(
            Claim(sizes, dtype, 0, SCAN_BACKWARD, COPY, SCAN, at_least=backward, scale=1.5)
        )
    return claims


CALLS = [Claim(CALL_SIZES, "float32", 1, CALL, name, PLAIN, at_most=2.0) for name in (LAYER, STEP)]
CPU = [
    *layer((32, 1024, 512), "float32", 1.15, 1.25),
    *layer((16, 784, 512), "float32", 1.15, 1.25),
    *scan_beside_relu((32, 1000, 128)),
    *scan_beside_relu((16, 784, 512)),
    Claim(THREAD_SIZES, "float32", 0, THREADS, threads_word(1), threads_word(2), at_least=1.6),
    *CALLS,
]
MANY = 1 << 14  # sequences times channels that fill a GPU
GPU = [
    *layer((32, 1024, 512), "bfloat16", 1.1, 1.15),
    *layer((8, 4096, 1024), "bfloat16", 1.1, 1.15),
    *(
        claim
        for dtype in ("float32", "bfloat16")
        for sizes in SIZES
        if sizes[0] * sizes[2] >= MANY
        for claim in bandwidth(sizes, dtype, 0.85, 0.8)
    ),
    *(
        claim
        for dtype in ("float32", "bfloat16")
        for claim in bandwidth((1, 1048576, 256), dtype, 0.6)
    ),
    *(
        Claim(sizes, dtype, 0, SCAN_FORWARD, SERIAL, SCAN, at_least=least)
        for dtype in ("float32", "bfloat16")
        for sizes, least in (((32, 1024, 128), 5), ((1, 1048576, 256), 50))
    ),
    *(
        Claim(sizes, "bfloat16", 1, FORWARD, LSTM, LAYER, at_least=20)
        for sizes in SIZES
        if sizes[1] == 1024
    ),
    *CALLS,
]


def judge(kind, records):
    """Verdicts on all claims for a kind of device that were measured."""
    verdicts = [claim.judge(records) for claim in (GPU if kind == "cuda" else CPU)]
    return [verdict for verdict in verdicts if verdict is not None]
