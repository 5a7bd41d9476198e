"""Who may import whom: layers and blocks -> functional -> ops -> kernels, and not the other way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("fastindrnn", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))
]
EVERYTHING = [
    *SOURCES,
    *sorted((ROOT / "tests").glob("*.py")),
    *sorted((ROOT / "bench").rglob("*.py")),
]

# A module of the package may import modules of a lower rank only; the kernels are below them all.
RANK = {
    "kernels": 0,
    "second_order": 0,
    "checks": 0,
    "describe": 0,
    "flops": 1,
    "vmap": 1,
    "ops": 2,
    "projected": 3,
    "functional": 4,
    "init": 5,
    "constraint": 5,
    "optim": 5,
    "sequences": 5,
    "norm": 6,
    "zoneout": 6,
    "units": 7,
    "layers": 8,
    "cell": 8,
    "blocks": 8,
    "fold": 9,
    "memory": 9,
    "interop": 10,
    "onnx": 10,
    "__init__": 11,
    "__main__": 12,
}
REFERENCE = "fastindrnn.kernels.reference"


def imported(path):
    """Full names of all that a file imports, at any depth; `from a import b` gives a and a.b."""
    package = ".".join(path.parent.relative_to(ROOT).parts)
    package = f"fastindrnn.{package}" if path.is_relative_to(ROOT / "kernels") else package
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_kernels_are_imported_from_the_package(path):
    wrong = {name for name in imported(path) if name.split(".")[0] == "kernels"}
    assert not wrong, (
        f"{path}: {wrong} is found only from the repository root; say fastindrnn.kernels"
    )


def part_of(path):
    """The module or package of fastindrnn/ or kernels/ that a file is or lies in."""
    part = path.relative_to(ROOT).parts[1]
    return part.removesuffix(".py")


def files_of(folder):
    return [path for path in SOURCES if path.is_relative_to(ROOT / folder)]


@pytest.mark.parametrize("path", files_of("fastindrnn"), ids=name_of)
def test_imports_inside_the_package_go_down(path):
    own = part_of(path)
    assert own in RANK, f"{own} has no rank in tests/test_layout.py"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "fastindrnn" or len(parts) == 1:
            continue
        if parts[1] == "kernels":
            assert own in {"ops", "functional"}, f"{path.name} imports {name}: ops does that"
            if own == "functional" and len(parts) > 2:
                assert name.startswith(REFERENCE), f"functional.py imports {name}, past ops.py"
        elif parts[1] in RANK and parts[1] != own:
            assert RANK[parts[1]] < RANK[own], f"{path.name} imports {name}: the wrong way"


@pytest.mark.parametrize("path", files_of("kernels"), ids=name_of)
def test_kernels_import_only_kernels(path):
    for name in imported(path):
        inside = name == "fastindrnn.kernels" or name.startswith("fastindrnn.kernels.")
        assert inside or name.split(".")[0] != "fastindrnn", f"{path.name} imports {name}"


def test_only_functional_and_checks_import_the_reference():
    users = {part_of(path) for path in SOURCES if REFERENCE in imported(path)}
    assert users <= {"functional"}, users
