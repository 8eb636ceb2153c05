"""Errors a user can meet, and their exit codes (0 ok, 1 our bug, 2 bad input or usage, 3 no feasible plan)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

_MAX_ECHO = 120  # characters of the user's own text repeated in a message
_MAX_SHOWN = 100  # problems printed before the rest is only counted


def printable(text: object, limit: int = _MAX_ECHO) -> str:
    """``text`` safe for a terminal: control and bidirectional characters escaped, cut after ``limit`` characters."""
    raw = str(text)
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in raw[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """Hint with the nearest known names ("did you mean a, b?"), or "" when nothing is near."""
    by_folded = {name.casefold(): name for name in known}
    folded = word[:200].casefold()
    # an abbreviation ("h200" of "h200-sxm") counts as nearer than a typing mistake
    longer = sorted((name for name in by_folded if len(folded) >= 2 and name.startswith(folded)), key=len)
    near = list(dict.fromkeys(longer + get_close_matches(folded, list(by_folded), n=n, cutoff=0.6)))[:n]
    return f"did you mean {', '.join(by_folded[name] for name in near)}?" if near else ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one place of the input.

    ``file`` is a path or ``--set``; ``line`` and ``col`` count from 1 and are None where a place has none.
    ``path`` is the value's place in the document ("serving.layout.tp").
    """

    file: str
    line: int | None
    col: int | None
    path: str
    what: str
    got: str = ""
    allowed: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = [printable(self.file, 300), *(str(n) for n in (self.line, self.col) if n is not None)]
        head = ":".join(place) + ": "
        if self.path:
            head += printable(self.path) + ": "
        text = head + self.what
        if self.got:
            text += f" (got {printable(self.got)})"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.hint:
            text += f"; hint: {self.hint}"
        return text


class MoeplanError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(MoeplanError):
    """What the user gave cannot be used. Carries every problem found."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:_MAX_SHOWN]]
        if len(self.problems) > _MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - _MAX_SHOWN} more problems")
        return "\n".join(lines)


def input_error(file: object, what: str, *, got: object = "", allowed: str = "", hint: str = "") -> InputError:
    """An ``InputError`` with one problem that concerns a whole file or option rather than a place in it."""
    return InputError([Problem(str(file), None, None, "", what, str(got), allowed, hint)])
