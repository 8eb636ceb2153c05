"""The reference page of the command line, made from click.

``python -m moeplan.cli.reference > docs/reference/cli.md``
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

import click

from moeplan.cli import main

_HEAD = """# Commands

Made by `python -m moeplan.cli.reference`; do not edit. Every command answers `--help`; machine output (`--json`) is
alone on stdout, progress goes to stderr when that is a terminal. Exit codes: 0 done, 1 a fault of the program, 2 bad
input or usage, 3 no feasible plan. Shell completion and help in editors: [editors and shells](editors.md).
"""


def cli_markdown() -> str:
    """Every command with its arguments and options."""
    parts = [_HEAD]
    context = click.Context(main, info_name="moeplan")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is not None:
            parts += _command(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context, level: int = 2) -> Iterator[str]:
    path = context.command_path
    yield f"{'#' * level} {path}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"`{path} {usage}`\n"
    yield cleandoc(command.help or command.short_help or "").replace("\b", "") + "\n"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield "| option | default | meaning |\n|---|---|---|"
        yield from (_option(option, context) for option in options)
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        names += f" {option.make_metavar(context)}"
    default = option.get_default(context)
    shown = "" if not isinstance(default, bool | int | float | str) or default in (False, "") else f"{default}".lower()
    cells = (names, shown, option.help or "")
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    click.echo(cli_markdown(), nl=False)
