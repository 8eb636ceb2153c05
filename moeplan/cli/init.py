"""``moeplan init``: a commented starter scenario."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("kind", type=click.Choice(["serving", "training", "lifecycle"]), default="serving")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def init(kind: str, path: Path | None) -> int:
    """Write a commented starter scenario of KIND to PATH, or to standard output.

    An existing file is never overwritten.
    """
    from moeplan.errors import input_error
    from moeplan.files.locate import data_folder

    text = (data_folder("starters") / f"{kind}.yaml").read_text(encoding="utf-8")
    if path is None:
        click.echo(text, nl=False)
        return 0
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise input_error(path, "exists already, nothing was written", hint="choose another name") from None
    except (OSError, ValueError) as error:
        raise input_error(path, f"cannot be written: {getattr(error, 'strerror', None) or error}") from None
    click.echo(f"wrote {path}; next: moeplan simulate {path}", err=True)
    return 0
