"""Where the package's data lies: beside the code in a wheel, at the top of the repository in a checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from moeplan.errors import input_error

_PACKAGE = Path(str(files("moeplan")))


def data_folder(name: str) -> Path:
    """Folder of shipped data: ``models``, ``prices``, ``hardware_profiles``, ``scenarios``.

    Raises InputError when the installation lacks it.
    """
    candidates = (_PACKAGE / "data" / name, _PACKAGE.parent / name)
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise input_error(name, "this installation has no such data folder", allowed=looked, hint="install moeplan again")


def is_path(name: str) -> bool:
    """Whether a ``model:`` or ``hardware:`` value names a file rather than a catalog entry."""
    return "/" in name or "\\" in name or name.startswith((".", "~")) or name.endswith((".yaml", ".yml", ".json"))


def resolve_path(text: str, base_dir: Path | None, what: str) -> Path:
    """Absolute path of ``text`` seen from ``base_dir``, the folder of the file naming it (None: the current folder).

    A file may only name files in its own folder or below: raises InputError for a path that leaves ``base_dir``.
    """
    if base_dir is None:
        return Path(text).expanduser().resolve()
    base = base_dir.resolve()
    path = (base / text).resolve()
    if not path.is_relative_to(base):
        raise input_error(
            text, f"the {what} path leaves the folder of the file that names it", allowed=f"a path inside {base}"
        )
    return path
