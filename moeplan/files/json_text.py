"""JSON of other programs' files: what is wrong with it, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeplan.errors import InputError, Problem


def parse_json(path: Path, text: bytes, line: int = 1) -> Any:
    """The value of ``text``, which stands in ``path`` from ``line`` on.

    Raises:
        InputError: not UTF-8, not JSON, or nested too deeply; located.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        at = Problem(str(path), line + error.lineno - 1, error.colno, "", f"not JSON: {error.msg}")
    except UnicodeDecodeError as error:
        at = Problem(str(path), line, None, "", f"not UTF-8 text: byte {error.start}")
    except ValueError:  # the interpreter's limit on the digits of a whole number
        at = Problem(str(path), line, None, "", "not JSON: a whole number of thousands of digits")
    except RecursionError:
        at = Problem(str(path), line, None, "", "nested too deeply")
    raise InputError([at])
