"""The terminal: rich's console, on which no text of a user or a catalog can act."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console as rich_console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment


class Console(rich_console.Console):
    """Control and direction characters inside texts are shown escaped; rich's own styles are no part of a text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                yield Segment(_inert(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Left to the command line; rich would end the process with 1."""
        raise BrokenPipeError


def _inert(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
