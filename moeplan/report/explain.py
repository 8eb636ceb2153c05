"""The chain behind one number on the terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from moeplan.planner.answers.explain import Explained, Link

_LONGEST = 400  # characters of one input


def print_explained(found: Explained, console: Console) -> None:
    """The number, how it comes about, what goes in, and what makes it uncertain."""
    span = "" if found.low is None or found.low == found.high else f" (90 % sure: {found.low:.4g} to {found.high:.4g})"
    value = f"{found.value:.6g}" if isinstance(found.value, float) else str(found.value)
    console.print(Text(f"{found.path} = {value} {found.unit}".rstrip() + span, "bold"))
    console.print(Text(f"how: {found.formula}"))
    console.print(Text(f"method: {found.method}"))
    if found.chain:
        console.print(Text("\nWhat goes in", "bold"))
    for link in found.chain:
        console.print(_line(link))
    console.print(Text("\nWhat makes it uncertain", "bold"))
    for share in found.shares:
        cause = f"errors of {share.cause.replace('_', ' ')}" if share.n_runs or share.low or share.high else share.cause
        from_ = (
            f": truth is {math.exp(share.low):.2f} to {math.exp(share.high):.2f} of the prediction, "
            f"{share.n_runs or 'no'} runs; {share.source}"
            if share.low or share.high
            else ""
        )
        console.print(Text(f"{share.share_frac:4.0%}  {cause}{from_}"))
    console.print(Text(found.text))


def _line(link: Link) -> Text:
    indent = "  " * link.depth
    line = Text(f"{indent}{link.path} = ", "bold")
    line.append(f"{link.value[:_LONGEST]} {link.unit}".rstrip(), "default")
    told = [link.tier or link.kind, link.date, link.source if link.kind != "plan" else ""]
    if link.kind != "plan":
        line.append(f"  [{'; '.join(part for part in told if part)}]"[:_LONGEST], "cyan")
    return line
