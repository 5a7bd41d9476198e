"""Records of a run as text: lines for the terminal, and the part of README.md that shows them."""

from bench.speed.candidates import COPY, GRU, LAYER, LINEAR, LOOP, LSTM, RNN, SCAN
from bench.speed.cases import FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING, Case
from bench.speed.growth import series
from bench.speed.host import CALL, PLAIN, STEP, THREADS, threads_word

PEERS = RNN, GRU, LSTM, LOOP
NOTHING = "-"
GROWING = [
    series(name, what)
    for name, what in (
        (SCAN, SCAN_FORWARD),
        (LAYER, FORWARD),
        (LAYER, TRAINING),
        (LINEAR, FORWARD),
        (LINEAR, TRAINING),
    )
]


def number(value):
    """Three digits, in full."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def title(record):
    sizes = tuple(record["sizes"].values())
    return Case(sizes, record["dtype"], record["what"], record["layers"]).title()


def table(record):
    """A case: a line for each candidate, and for each word why others are skipped."""
    scale, unit = (1e3, "us") if record["what"] == CALL else (1, "ms")
    lines = ["", title(record)]
    heads = "".join(f"{'/ ' + below:>20}" for below in record["ratios"])
    if record["ms"]:
        lines.append(f"  {'':<18}{unit:>9}  {'quartiles':<20}{heads}{'MB':>9}".rstrip())
    for name, times in record["ms"].items():
        lower, median, upper = (
            number(scale * times[part]) for part in ("lower", "median", "upper")
        )
        ratios = (own.get(name) for own in record["ratios"].values())
        shown = "".join(f"{number(own['median']) if own else '':>20}" for own in ratios)
        held = record["memory_bytes"].get(name)
        memory = f"{number(held / 1e6):>9}" if held is not None else ""
        lines.append(
            f"  {name:<18}{median:>9}  {f'[{lower}, {upper}]':<20}{shown}{memory}".rstrip()
        )
    words = {}
    for name, word in record["skipped"].items():
        words.setdefault(word, []).append(name)
    lines += [f"  skipped: {', '.join(names)}: {word}" for word, names in words.items()]
    return "\n".join(lines)


def growth_table(sweep):
    """Slopes, and between which medians."""
    lines = ["", f"slopes over {sweep['variable']} at ({sweep['sizes']}), {sweep['dtype']}"]
    for name, points in sweep["ms"].items():
        (first, short), (last, long) = points[0], points[-1]
        slope = sweep["slopes"][name]
        lines.append(
            f"  {name:<32}{NOTHING if slope is None else f'{slope:.2f}':>6}   "
            f"{sweep['variable']} = {first} to {last}: {number(short)} to {number(long)} ms"
        )
    return "\n".join(lines)


def verdict_line(verdict):
    word = {True: "holds", False: "MISSED", None: verdict.get("skipped")}[verdict["holds"]]
    value = NOTHING if verdict["value"] is None else number(verdict["value"])
    return f"{verdict['label']:<78}{value:>7}  {verdict['bound']:<8}{word}"


def find(content, what, layers, dtype):
    return [
        record
        for record in content["records"]
        if (record["what"], record["layers"], record["dtype"]) == (what, layers, dtype)
    ]


def main_dtype(content):
    """What the table shows: bfloat16 on a GPU, float32 on a CPU, if it was measured."""
    wanted = "float32" if content["environment"]["device"] == "cpu" else "bfloat16"
    dtypes = {record["dtype"] for record in content["records"] if record["what"] == FORWARD}
    return wanted if wanted in dtypes or not dtypes else dtypes.pop()


def ms_of(record, name):
    return number(record["ms"][name]["median"]) if record and name in record["ms"] else NOTHING


def ratio_of(record, above, below):
    ratio = record["ratios"].get(below, {}).get(above) if record else None
    return number(ratio["median"]) if ratio else NOTHING


def markdown(content, stem):
    """What README.md says of one JSON: bench/results/`stem`.json."""
    environment, dtype = content["environment"], main_dtype(content)
    folder = "bench/results"
    parts = [
        f"**{environment['device_name']}**, {dtype}, torch {environment['versions']['torch']} "
        f"({environment['date'][:10]}, [figures]({folder}/{stem}.json)). Milliseconds; the last "
        f"{len(PEERS)} columns are how many times as long as `IndRNN` a forward of theirs takes.",
        layer_table(content, dtype),
        "\n".join(f"![{plot}]({folder}/{stem}-{plot}.svg)" for plot in plots_shown(content)),
        "\n".join(f"- {line}" for line in remarks(content, dtype)),
    ]
    return "\n\n".join(parts)


def plots_shown(content):
    """Of all that `plots.draw` makes of it, the two that README.md shows."""
    return ["time", "ratio"] if content["growth"] else ["ratio"]


def layer_table(content, dtype):
    heads = ["forward", LINEAR, "ratio", "training", LINEAR, "ratio", *PEERS]
    rows = [["B, T, N", *heads], ["---", *["---:"] * len(heads)]]
    trainings = {
        tuple(record["sizes"].values()): record for record in find(content, TRAINING, 1, dtype)
    }
    for forward in find(content, FORWARD, 1, dtype):
        sizes = tuple(forward["sizes"].values())
        row = [", ".join(map(str, sizes))]
        for record in (forward, trainings.get(sizes)):
            row += [ms_of(record, LAYER), ms_of(record, LINEAR), ratio_of(record, LAYER, LINEAR)]
        rows.append(row + [ratio_of(forward, peer, LAYER) for peer in PEERS])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def remarks(content, dtype):
    """What else there is, a line each."""
    limit = f"{content['seconds_a_call']:g} s"
    yield f"`{NOTHING}`: not called, as it would take more than {limit}, or too much memory."
    shares = [
        f"{what.removeprefix('scan ')} {min(found):.0%} to {max(found):.0%}"
        for what, scale in ((SCAN_FORWARD, 1), (SCAN_BACKWARD, 1.5))
        if (found := list(copy_shares(content, what, dtype, scale).values()))
    ]
    if shares:
        yield f"The recurrence alone, as a share of the bandwidth of a copy: {', '.join(shares)}."
    for record in content["records"]:
        if record["what"] == CALL:
            times = {name: number(1e3 * own["median"]) for name, own in record["ms"].items()}
            yield (
                f"One call at (1, 1, 256): `IndRNN` {times[LAYER]} µs, `step` {times[STEP]} µs, "
                f"`{PLAIN}` {times[PLAIN]} µs."
            )
        if record["what"] == THREADS:
            sizes, one = tuple(record["sizes"].values()), threads_word(1)
            times = [
                f"{number(own[one]['median'])} times as fast on {name}"
                for name, own in record["ratios"].items()
            ]
            yield f"The recurrence forward at {sizes}, beside {one}: {', '.join(times)}."
    yield from slopes(content)
    yield from bounds(content)


def slopes(content):
    """With what power of T, B and N time grows."""
    growing = {}
    for sweep in content["growth"]:
        for name in GROWING:
            if sweep["slopes"].get(name) is not None:
                word = f"{sweep['variable']} {sweep['slopes'][name]:.2f}"
                growing.setdefault(name, []).append(word)
    if growing:
        words = [f"{name}: {', '.join(powers)}" for name, powers in growing.items()]
        yield f"Time grows as a power of the sizes; {'; '.join(words)}."


def copy_shares(content, what, dtype, scale):
    """{sizes: achieved fraction of the bandwidth of a copy of the same tensor}."""
    return {
        tuple(record["sizes"].values()): scale * record["ratios"][SCAN][COPY]["median"]
        for record in find(content, what, 0, dtype)
        if COPY in record["ratios"].get(SCAN, {})
    }


def bounds(content):
    verdicts = content["claims"]
    if not verdicts:
        return
    missed = [verdict for verdict in verdicts if verdict["holds"] is False]
    held = sum(verdict["holds"] is True for verdict in verdicts)
    words = [f"\n  - {v['label']}: {number(v['value'])}, aim {v['bound']}" for v in missed]
    yield f"{held} of {len(verdicts)} aims are met{'; missed:' if words else '.'}{''.join(words)}"
