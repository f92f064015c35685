"""Folders that results go to: looked at before the work begins, so that none is done for nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from clinfuse.errors import ConfigError


def check_writable(folder: str | Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be written or made; nothing is left there.

    Args:
        folder: local path; it, or the nearest folder above it that exists, is tried.
        option: that names it on the command line.

    Raises:
        ConfigError: there is a file, or nothing can be written there.
    """
    wanted = Path(folder).absolute()
    try:
        place = next(path for path in (wanted, *wanted.parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            return
    except NotADirectoryError:
        found = "a file of that name"
    except OSError as error:
        found = f"a place that cannot be written ({type(error).__name__})"
    raise ConfigError(
        f"{option} cannot be used",
        expected="a folder that can be written, or a name for a new one",
        found=found,
        todo="choose another, or change its permissions",
    )
