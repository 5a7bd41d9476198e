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
KERNELS = sorted(path.name for path in (ROOT / "kernels").glob("*.py"))
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
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    out = checkout.parent / kind
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, out], cwd=checkout, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(checkout):
    return build(checkout, "wheel")


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True, timeout=300)


def where_the_kernels_are(python, folder, **environment):
    """The file that `fastindrnn.kernels.reference` is imported from, away from the checkout."""
    environment = {"PATH": os.environ["PATH"], **environment}
    command = [python, "-c", SHOW]
    run = subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return Path(run.stdout.strip())


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"fastindrnn/kernels/{name}" for name in KERNELS} <= names
    assert {"fastindrnn/__init__.py", "fastindrnn/py.typed"} <= names
    others = {name for name in names if not name.startswith(("fastindrnn/", "fastindrnn-"))}
    assert not others
    assert any(name.endswith("LICENSE") for name in names)


def test_sdist_holds_the_sources(checkout):
    with tarfile.open(build(checkout, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"kernels/{name}" for name in KERNELS} <= names
    assert {"fastindrnn/__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not {name for name in names if name.startswith(("tests", "bench"))}


def test_wheel_installs_without_network(wheel, tmp_path):
    pip("install", *OFFLINE, "--target", tmp_path / "site", wheel)
    found = where_the_kernels_are(sys.executable, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert found == tmp_path / "site" / "fastindrnn" / "kernels" / "reference.py"


def test_editable_install_without_network(checkout, tmp_path):
    """As on a GPU machine that has torch, triton, numpy and setuptools, and no network."""
    venv.create(tmp_path / "venv", with_pip=False)
    windows = os.name == "nt"
    python = tmp_path / "venv" / ("Scripts/python.exe" if windows else "bin/python")
    site = sysconfig.get_path(
        "purelib", "nt_venv" if windows else "posix_venv", {"base": tmp_path / "venv"}
    )
    outer = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    Path(site, "outer.pth").write_text("\n".join(outer))
    pip("--python", python, "install", *OFFLINE, "--no-build-isolation", "-e", checkout)
    assert where_the_kernels_are(python, tmp_path) == checkout / "kernels" / "reference.py"
