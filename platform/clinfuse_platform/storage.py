"""Files and folders that appear whole or not at all, at a local path or any fsspec URL.

Local: written aside and renamed. Object stores: one put per file; a model folder's index last, which marks it complete.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

if TYPE_CHECKING:
    import pandas as pd

MODEL_INDEX = "model_index.json"
Place = str | Path | UPath


def storage_path(path: Place) -> UPath:
    """The path, absolute when local, so that workers started elsewhere see the same folder.

    At a URL nothing is remembered of earlier looks: others write there meanwhile.
    """
    found = UPath(path)
    local = found.protocol in ("", "file")
    return found.absolute() if local else UPath(str(path), use_listings_cache=False)


def write_atomic(path: Place, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, so that a reader sees the old file or the new one; makes its folder."""
    place = UPath(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.protocol not in ("", "file"):
        place.write_bytes(data)
        return
    aside = Path(f"{place}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        aside.write_bytes(data)
        aside.replace(str(place))
    finally:
        aside.unlink(missing_ok=True)


def write_table(path: Place, table: pd.DataFrame) -> None:
    """Write a table as Parquet, without its index, as `write_atomic` does."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())


def publish_folder(source: Path, target: UPath) -> None:
    """Make a finished local folder appear under its final name; an older one there is replaced.

    Local: two renames. Object stores: the older one's files go, its model index first, and the files are put with the
    model index last, which marks the folder complete.
    """
    if target.protocol not in ("", "file"):
        if (target / MODEL_INDEX).exists():
            (target / MODEL_INDEX).unlink()
            target.fs.rm(target.path, recursive=True)
        files = sorted(file for file in source.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: file.name == MODEL_INDEX):
            (target / file.relative_to(source).as_posix()).write_bytes(file.read_bytes())
        shutil.rmtree(source)
        return
    final = Path(str(target))
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
    if final.exists():
        final.rename(old)
    source.rename(final)
    shutil.rmtree(old, ignore_errors=True)
