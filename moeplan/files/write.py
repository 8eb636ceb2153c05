"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path``, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by renaming a finished temporary file beside it: a full disk leaves the old file.

    Raises InputError when the folder does not exist, cannot be written, or is full.
    """
    from moeplan.errors import InputError, Problem

    def failed(error: OSError) -> InputError:
        return InputError([Problem(str(path), None, None, "", "cannot be written", str(error.strerror))])

    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise failed(error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise failed(error) from error
    except BaseException:
        os.unlink(temporary)
        raise
