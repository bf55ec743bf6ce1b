"""Patterns from a configuration: the engine of the tools that write them, with a limit of time."""

from __future__ import annotations

import pytest

from bitsmith.containers.name_patterns import first_matches
from bitsmith.errors import FileError

NAMES = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "lm_head"]


def test_the_first_pattern_that_matches_the_beginning_counts() -> None:
    patterns = ["up_proj", r".*mlp\.(?!gate)", r"model\.layers\.(\d)\.self_attn", ".*"]
    assert first_matches(patterns, NAMES, where="x") == [1, 2, 3]
    assert first_matches([], NAMES, where="x") == [None, None, None]


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(.*a){25}b"])
def test_a_pattern_that_takes_years_is_stopped(pattern: str) -> None:
    with pytest.raises(FileError, match=r"folder: matching its 1 patterns .* takes more than 1 s; write simpler"):
        first_matches([pattern], ["a" * 60 + "!"], where="folder", seconds=1)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(FileError, match=r"folder: '\(' is not a regular expression: missing \)"):
        first_matches([".*", "("], NAMES, where="folder")
    with pytest.raises(FileError, match=r"is not a regular expression: the repetition number is too large"):
        first_matches(["a{99999999999999}"], NAMES, where="folder")
