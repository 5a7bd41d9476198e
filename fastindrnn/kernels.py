"""In a checkout, the place of the package `fastindrnn.kernels`: the folder `kernels/` beside
`fastindrnn/`. A wheel holds that folder itself, and not this file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The folder's modules, for type checkers, which do not look at `__path__`."""
