"""What is shipped: wheel, sdist and editable install hold fastindrnn.kernels and no tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted(
    str(path.relative_to(ROOT / "kernels")) for path in (ROOT / "kernels").rglob("*.py")
)
OFFLINE = ["--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
SHOW = "import fastindrnn.kernels.reference as kernel; print(kernel.__file__)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, as a build leaves things behind where it runs."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    left_behind = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, ignore=left_behind)
    return copy


def build(checkout, kind):
    code = f"import sys; from hatchling import build; build.build_{kind}(sys.argv[1])"
    out = checkout.parent / kind
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, out], cwd=checkout, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(checkout):
    return build(checkout, "wheel")


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"fastindrnn/kernels/{name}" for name in KERNELS} <= names
    assert {"fastindrnn/__init__.py", "fastindrnn/py.typed"} <= names
    others = {name for name in names if not name.startswith(("fastindrnn/", "fastindrnn-"))}
    assert not others
    assert any(name.endswith("LICENSE") for name in names)
    assert "fastindrnn/kernels.py" not in names, "it would stand beside the folder of that name"


def test_sdist_holds_the_sources(checkout):
    with tarfile.open(build(checkout, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"kernels/{name}" for name in KERNELS} <= names
    assert {"fastindrnn/__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not {name for name in names if name.startswith(("tests", "bench"))}


@pytest.fixture
def python(tmp_path):
    """The interpreter of a new virtual environment that has the packages of this one, but for
    fastindrnn: as on a GPU machine that has torch, triton and hatchling, and no network."""
    venv.create(tmp_path / "venv", with_pip=False)
    windows = os.name == "nt"
    site = sysconfig.get_path(
        "purelib", "nt_venv" if windows else "posix_venv", {"base": tmp_path / "venv"}
    )
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in (path for path in sys.path if path.endswith("-packages")):
        for path in Path(folder).iterdir():
            link = packages / path.name
            if not ("fastindrnn" in path.name or path.suffix == ".pth" or link.exists()):
                link.symlink_to(path)
    Path(site, "packages.pth").write_text(str(packages))
    return tmp_path / "venv" / ("Scripts/python.exe" if windows else "bin/python")


TRAIN = """
import torch, fastindrnn
fastindrnn.IndRNN(2, 3)(torch.randn(4, 1, 2))[0].sum().backward()
"""


def kernels_of(python, folder, *options, first=""):
    """The file of the kernels that a process imports whose folder is `folder`."""
    command = [python, *options, "-c", first + SHOW]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.strip())


def test_installs_over_each_other(checkout, wheel, python, tmp_path):
    """Plain, used, editable over it, removed, plain again: nothing that was left behind is found
    in the place of the package."""
    offline = ["--python", python, "install", *OFFLINE, "--no-build-isolation"]
    in_checkout = checkout / "kernels" / "reference.py"
    pip(*offline, wheel)
    installed = kernels_of(python, tmp_path, first=TRAIN)
    assert tmp_path / "venv" in installed.parents
    assert kernels_of(python, checkout) == in_checkout, "the folder that one stands in wins"
    assert kernels_of(python, checkout, "-I") == installed
    pip(*offline, "-e", checkout)
    assert kernels_of(python, tmp_path) == in_checkout
    pip("--python", python, "uninstall", "-q", "-y", "fastindrnn")
    gone = subprocess.run(
        [python, "-c", "import fastindrnn"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "No module named 'fastindrnn'" in gone.stderr
    assert kernels_of(python, checkout) == in_checkout, "a checkout need not be installed"
    pip(*offline, wheel)
    assert kernels_of(python, tmp_path) == installed


USER = """
from fastindrnn import IndRNN

rnn = IndRNN(3, "4")
"""
# Without what torch imports, which takes mypy half a minute.
MYPY = """
[mypy]
[mypy-torch.*]
follow_imports = skip
"""


@pytest.mark.parametrize("how", ["plain", "editable"])
def test_type_checkers_find_the_package(checkout, wheel, python, tmp_path, how):
    """Of a script that lies elsewhere they report the one mistake, an argument's type."""
    source = [wheel] if how == "plain" else ["-e", checkout]
    pip("--python", python, "install", *OFFLINE, "--no-build-isolation", *source)
    (tmp_path / "script.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text(MYPY)
    for checker in (["mypy", "--python-executable", python], ["pyright", "--pythonpath", python]):
        command = [sys.executable, "-m", *checker, "script.py"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert "1 error" in run.stdout, run.stdout + run.stderr
        assert "argument" in run.stdout.lower(), run.stdout
