"""Names, aliases and file types of the mixes."""

import gguf
import pytest

from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import UsageError
from bitsmith.recipe import ALIASES, GGUF_RULE_TYPES, MIXES, find_mix


@pytest.mark.parametrize("name", MIXES)
def test_file_types_are_ggufs(name: str) -> None:
    member = {"f32": "ALL_F32"}.get(name, f"MOSTLY_{name.upper()}")
    if member not in gguf.LlamaFileType.__members__:
        pytest.skip("the gguf package does not know it")
    assert MIXES[name].file_type == gguf.LlamaFileType[member].value


def test_every_type_a_mix_names_can_be_written() -> None:
    for mix in MIXES.values():
        named = {mix.base}
        for table in (mix.table, mix.falcon):
            named |= {type_name for rows in table.values() for type_name, _ in rows}
        assert named <= GGUF_RULE_TYPES <= TYPES.keys()


def test_names_are_found_in_any_case() -> None:
    assert find_mix("Q4_K_M") is MIXES["q4_k_m"]
    assert find_mix("IQ4_xs") is MIXES["iq4_xs"]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases(alias: str, name: str) -> None:
    assert name == f"{alias}_m"
    assert find_mix(alias.upper()) is MIXES[name]


def test_an_unknown_name_lists_the_known_and_suggests() -> None:
    with pytest.raises(UsageError, match=r"'q4_km'.*did you mean .*q4_k_m") as caught:
        find_mix("q4_km")
    assert all(name in str(caught.value) for name in MIXES)
    with pytest.raises(UsageError, match="bitsmith reads q8_1 but does not write it"):
        find_mix("q8_1")
