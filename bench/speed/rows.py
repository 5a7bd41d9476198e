"""Figures of the rows that `python -m bench speed` measures, and how they are shown."""

import math
import statistics

from bench.speed.cases import Case

FORMAT = 3  # of the JSON


def by_case(rows):
    """{case: {name: row}}. A row is what became of one candidate in one case."""
    found = {}
    for row in rows:
        case = Case((row["B"], row["T"], row["N"]), row["dtype"], row["what"])
        found.setdefault(case, {})[row["name"]] = row
    return found


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio(rows, name, below):
    """How many times as long as `below` a candidate took: the median of the ratios within a round;
    None where one of the two has no time."""
    above, below = (rows.get(each, {}).get("ms") for each in (name, below))
    if not (above and below):
        return None
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def number(value):
    """Three significant digits, without an exponent."""
    digits = max(2 - math.floor(math.log10(value)), 0) if value else 0
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if digits else shown


def lines(rows):
    """One case for the terminal. Of each row the median, the quartiles, the ratio to the first row
    (none where that has no time) and the memory; or why there is no time."""
    ((case, found),) = by_case(rows).items()
    first, width = next(iter(found)), max(map(len, found))
    yield f"\n{case}"
    for name, row in found.items():
        shown = row.get("skipped") or row.get("error")
        if "ms" in row:
            low, median, high = map(number, quartiles(row["ms"]))
            times = ratio(found, name, first) if name != first else None
            times = f"{number(times)} x" if times else ""
            memory = f"{number(row['bytes'] / 1e6)} MB" if "bytes" in row else ""
            shown = f"{median:>9} ms  {f'[{low}, {high}]':<20}{times:>10}  {memory}"
        yield f"  {name:<{width}}  {shown}".rstrip()
