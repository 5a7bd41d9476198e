"""The machine code of compiled loops, kept in the user's cache folder from one process to the next.

Each loop has one file. A hash in its name stands for all that the machine code depends on: the
source of this folder, the processor and the versions of numba and Python. Where the file cannot be
read or written (a full disk, a folder without write permission, a damaged file), the loop is
compiled for this process alone, and one warning says so. numba's own cache raises an error there,
and runs a damaged file as machine code.
"""

import functools
import hashlib
import pickle
import sys
import uuid
import warnings
from pathlib import Path

import numba
from numba.core import config
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

_DIGEST = hashlib.sha256


def compile_loop(function, name, signature, **options):
    """A numba CFunc of `function`, read from disk if it is there.

    Two different functions must have two names. The source files alone do not tell them apart: a
    closure depends on the values that it closes over, too.
    """
    # numba names symbols of the machine code after the function, and all loops share one namespace.
    function.__name__ = function.__qualname__ = name
    loop = CFunc(function, (signature.args, signature.return_type), locals={}, options=options)
    loop._cache = _File(name)
    loop.compile()
    return loop


def folder():
    """NUMBA_CACHE_DIR where it is set, otherwise `fastindrnn` in the user's cache folder."""
    return Path(config.CACHE_DIR or AppDirs("fastindrnn", appauthor=False).user_cache_dir)


class _File:
    """The two methods of numba's `FunctionCache` that a CFunc calls, for one loop."""

    def __init__(self, name):
        self.name = name

    def load_overload(self, signature, target_context):
        target_context.refresh()
        try:
            data = self._path(target_context.codegen()).read_bytes()
            size = _DIGEST().digest_size
            if _DIGEST(data[size:]).digest() != data[:size]:
                raise ValueError("a damaged file")
            return CompileResult._rebuild(target_context, *pickle.loads(data[size:]))
        except FileNotFoundError:
            return None
        except Exception as error:  # unpickling may raise any
            _warn(error)
            return None

    def save_overload(self, signature, result):
        try:
            data = dumps(result._reduce())
            path = self._path(result.library.codegen)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written under another name and then renamed: no other process reads half a file.
            new = path.with_suffix(f".{uuid.uuid4().hex}")
            try:
                new.write_bytes(_DIGEST(data).digest() + data)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
        except Exception as error:
            _warn(error)

    def _path(self, codegen):
        versions = numba.__version__, sys.implementation.cache_tag, *codegen.magic_tuple()
        key = _DIGEST(repr((self.name, _sources(), versions)).encode()).hexdigest()
        return folder() / f"{self.name}-{key[:16]}.loop"


@functools.cache
def _sources():
    """A hash of the source of the compiled loops and of all functions that they call."""
    digest = _DIGEST()
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_warned = False


def _warn(error):
    """Once, also where another folder or file fails for another reason."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"a compiled CPU loop cannot be kept in or read from {folder()} "
            f"({type(error).__name__}: {error}): it is compiled anew, which takes some seconds",
            RuntimeWarning,
            stacklevel=2,
        )
