"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` by renaming a finished temporary file beside it.

    Raises InputError when the folder does not exist or cannot be written.
    """
    from moeplan.errors import InputError, Problem

    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError([Problem(str(path), 0, 0, "", "cannot be written", str(error.strerror), "", "")]) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
