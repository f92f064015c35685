"""Files and folders that appear whole or not at all: whoever has opened the old one reads the old one to its end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from clinfuse_platform.storage import MODEL_INDEX, publish_folder, write_atomic, write_table
from upath import UPath


def make_model(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / MODEL_INDEX).write_text(text)
    return folder


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "made" / "table.parquet"
    write_table(file, pd.DataFrame({"a": [1]}))
    old = file.read_bytes()
    with file.open("rb") as reader:
        write_table(file, pd.DataFrame({"a": [2, 3]}))
        assert reader.read() == old
    assert pd.read_parquet(file)["a"].tolist() == [2, 3]
    write_atomic(str(file), "é")
    assert file.read_bytes() == "é".encode() and [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomic(tmp_path / "taken", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_url_is_written_in_one_put(tmp_path: Path) -> None:
    place = UPath("memory://clinfuse-test/files/a.json")
    write_atomic(place, "{}")
    assert place.read_text() == "{}" and [path.name for path in place.parent.iterdir()] == ["a.json"]


def test_publishing_replaces_the_older_folder_at_once(tmp_path: Path) -> None:
    make_model(tmp_path / "model", "old")
    publish_folder(make_model(tmp_path / "aside", "new"), UPath(tmp_path / "model"))
    assert (tmp_path / "model" / MODEL_INDEX).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_publishing_to_an_object_store_puts_every_file(tmp_path: Path) -> None:
    target = UPath("memory://clinfuse-test/model")
    source = make_model(tmp_path / "aside", "new")
    (source / "weights").mkdir()
    (source / "weights" / "a.safetensors").write_bytes(b"1")
    publish_folder(source, target)
    assert (target / MODEL_INDEX).read_text() == "new"
    assert (target / "weights" / "a.safetensors").read_bytes() == b"1"
    publish_folder(make_model(tmp_path / "aside", "newer"), target)
    assert [path.name for path in target.iterdir()] == [MODEL_INDEX], "an older model's files stayed"
