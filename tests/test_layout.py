"""Who may import whom: layers and stacks -> functional -> ops -> kernels, and not the other way."""

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
    "options": 0,
    "checks": 1,
    "ops": 2,
    "plan": 3,
    "functional": 4,
    "outputs": 4,
    "describe": 0,
    "init": 5,
    "constraint": 5,
    "optim": 5,
    "sequences": 5,
    "norm": 6,
    "zoneout": 6,
    "units": 7,
    "stack": 7,
    "layers": 8,
    "bidirectional": 8,
    "cell": 8,
    "dense": 8,
    "residual": 8,
    "fold": 9,
    "memory": 9,
    "interop": 10,
    "onnx": 10,
    "__init__": 11,
    "__main__": 12,
}
# The same inside the packages of fastindrnn/: a file may import those before it.
INSIDE = {
    "interop": ["states", "layers", "authors", "haste", "rnn", "tensorflow", "__init__"],
    "checks": ["tensors", "transforms", "values", "__init__"],
    "ops": [
        "backends",
        "calls",
        "flops",
        "layout",
        "registration",
        "second_order",
        "vmap",
        "scan",
        "projection",
        "__init__",
    ],
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
            is_backend = path == ROOT / "fastindrnn" / "ops" / "backends.py"
            allowed = {"functional": REFERENCE, "ops": "fastindrnn.kernels.tensors"}.get(own)
            is_allowed = allowed is not None and (len(parts) == 2 or name.startswith(allowed))
            assert is_backend or is_allowed, f"{path.name} imports {name}: ops.backends does that"
        elif parts[1] in RANK and parts[1] != own:
            assert RANK[parts[1]] < RANK[own], f"{path.name} imports {name}: the wrong way"


@pytest.mark.parametrize(
    "path", [path for own in INSIDE for path in files_of(f"fastindrnn/{own}")], ids=name_of
)
def test_imports_inside_a_package_go_down(path):
    own = part_of(path)
    order = INSIDE[own]
    assert path.stem in order, f"{path.stem} has no place in tests/test_layout.py"
    for name in imported(path):
        parts = name.split(".")
        if parts[:2] == ["fastindrnn", own] and len(parts) > 2 and parts[2] in order:
            is_down = order.index(parts[2]) < order.index(path.stem)
            assert is_down, f"{path.name} imports {name}: the wrong way"


def test_every_package_has_an_order():
    folders = {path.parent.name for path in files_of("fastindrnn")} - {"fastindrnn"}
    assert folders <= set(INSIDE), folders


@pytest.mark.parametrize("path", files_of("kernels"), ids=name_of)
def test_kernels_import_only_kernels(path):
    for name in imported(path):
        inside = name == "fastindrnn.kernels" or name.startswith("fastindrnn.kernels.")
        assert inside or name.split(".")[0] != "fastindrnn", f"{path.name} imports {name}"


def test_only_functional_imports_the_reference():
    users = {part_of(path) for path in SOURCES if REFERENCE in imported(path)}
    assert users <= {"functional"}, users
