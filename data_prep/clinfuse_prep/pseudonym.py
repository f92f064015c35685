"""Keyed pseudonyms: case ids that say nothing, and the key and link table that stay outside the store."""

from __future__ import annotations

import csv
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from clinfuse.errors import InputError

KEY_FILE, LINKS_FILE = "key.hex", "links.csv"
Link = tuple[str, str, str, str]
"""A row of the link table: case id, patient's pseudonym, the patient's and the case's name at the source."""


@dataclass(frozen=True)
class Pseudonyms:
    """Names patients and cases by HMAC-SHA256 under a secret key.

    The same key and the same source name always give the same pseudonym, so a dataset can grow; without the key
    nobody can go back, nor test a guessed name.
    """

    key: bytes

    def case(self, patient: str, name: str) -> str:
        """Case id: "c" and 10 hexadecimal digits."""
        return "c" + self._code(f"case\0{patient}\0{name}")

    def patient(self, patient: str) -> str:
        """Patient pseudonym: "p" and 10 hexadecimal digits."""
        return "p" + self._code(f"patient\0{patient}")

    def _code(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), sha256).hexdigest()[:10]


def open_key(folder: Path) -> Pseudonyms:
    """Read the key of a folder, or make a new random one there (readable by its owner only).

    Raises:
        InputError: the key file is damaged.
    """
    path = folder / KEY_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise InputError(
            "the pseudonym key is damaged",
            expected=f"at least 32 hexadecimal digits in {KEY_FILE}",
            todo="restore it from your backup; a new key gives new case ids",
        )
    return Pseudonyms(key)


def read_links(folder: Path) -> dict[str, Link]:
    """The link table by case id; empty where there is none."""
    path = folder / LINKS_FILE
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        return {row[0]: (row[0], row[1], row[2], row[3]) for row in list(csv.reader(stream))[1:]}


def write_links(folder: Path, rows: Iterable[Link]) -> None:
    """Add rows to the link table."""
    path = folder / LINKS_FILE
    known = read_links(folder) | {row[0]: row for row in rows}
    aside = path.with_suffix(".part")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "patient", "source_patient", "source_case"])
        writer.writerows(known[case] for case in sorted(known))
    aside.replace(path)
