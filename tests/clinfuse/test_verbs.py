"""What verbs read alike: the words after `--set`."""

from __future__ import annotations

import pytest

from clinfuse.errors import ConfigError
from clinfuse.verbs import parse_settings


def test_settings_from_the_command_line_have_types() -> None:
    words = ["crop=[32,32]", "rate=1e-3", "denoiser.head=v", " beta = .5", "share=0", "flag=true", "a=b=c"]
    assert parse_settings(words) == {
        "crop": [32, 32],
        "rate": 0.001,
        "denoiser.head": "v",
        "beta": 0.5,
        "share": 0,
        "flag": True,
        "a": "b=c",
    }
    assert type(parse_settings(["steps=3"])["steps"]) is int, "a count stays whole"


@pytest.mark.parametrize("word", ["crop", "=3", " =3"])
def test_what_is_no_setting_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_settings([word])
