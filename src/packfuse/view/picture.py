"""Figures with matplotlib, without its global state: no backend is changed, nothing stays open."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packfuse.errors import ConfigError
from packfuse.extras import install_command
from packfuse.paths import write_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0049a6", "#b34700", "#00775a", "#8f4a87", "#6b3100", "#393a3b")
"""Colors of members, those of the views on light: they differ in every kind of color vision."""
DASHES = ("-", "--", ":", "-.", (0, (1, 4)))
"""Lines of members, which differ without colors."""
FORMATS = ("png", "svg", "pdf")
"""Endings of the files that can be written."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure; in a notebook, it shows itself.

    Attributes:
        figure: matplotlib's figure, to change it.
    """

    figure: Figure

    def save(self, path: str | os.PathLike[str], dpi: int = 150) -> None:
        """Write it to a file, whose ending says the format: PNG, SVG or PDF.

        Args:
            path: The file.
            dpi: Dots per inch, of a PNG.

        Raises:
            ConfigError: for another format, or if it cannot be written.
        """
        kind = Path(path).suffix[1:].lower()
        if kind not in FORMATS:
            raise ConfigError(
                f"{os.fspath(path)!r} is no picture", hint=f"name a .{', .'.join(FORMATS)} file"
            )
        write_named(path, self._rendered(kind, dpi))

    def _repr_png_(self) -> bytes:
        return self._rendered("png", 100)

    def _rendered(self, kind: str, dpi: int) -> bytes:
        image = io.BytesIO()
        with warnings.catch_warnings():
            # Of a character that the font does not have, a box is drawn.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(image, format=kind, dpi=dpi)
        return image.getvalue()


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib", hint=install_command("plot")) from error
    return Figure(figsize=(width, height), layout="constrained")
