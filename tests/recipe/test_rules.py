"""Rules: parsing, errors, order."""

import pytest

from bitsmith.errors import UsageError
from bitsmith.recipe import GGUF_RULE_TYPES, Rule, first_match
from bitsmith.recipe.rules import unused_rules


def test_a_rule_searches_anywhere_in_the_name() -> None:
    rule = Rule.parse("ffn_(up|down)=Q6_K")
    assert rule.type == "q6_k"
    assert rule.matches("blk.3.ffn_down.weight")
    assert not rule.matches("blk.3.ffn_gate.weight")
    assert str(rule) == "ffn_(up|down)=q6_k"


def test_the_last_equals_sign_separates() -> None:
    rule = Rule.parse("^(?=blk)=f16")
    assert rule.pattern.pattern == "^(?=blk)"
    assert rule.type == "f16"


def test_types_are_those_of_the_container() -> None:
    assert Rule.parse("down=int4-g32", {"int4-g32", "nf4"}).type == "int4-g32"
    with pytest.raises(UsageError, match=r"unknown type 'q6_k'.*known: int4-g32, nf4"):
        Rule.parse("down=q6_k", {"int4-g32", "nf4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ffn_down", "expected REGEX=TYPE"),
        ("=q6_k", "expected REGEX=TYPE"),
        ("ffn_(=q6_k", "not a regular expression"),
        ("ffn=q4_k_m", "unknown type 'q4_k_m'; did you mean q4_k"),
        ("ffn=", "unknown type ''"),
        ("ffn=q8_1", "unknown type 'q8_1'"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Rule.parse(text)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_first_match_wins() -> None:
    rules = [Rule.parse("blk.0.=q8_0"), Rule.parse("ffn=q6_k")]
    assert first_match(rules, "blk.0.ffn_up.weight") is rules[0]
    assert first_match(rules, "blk.1.ffn_up.weight") is rules[1]
    assert first_match(rules, "blk.1.attn_q.weight") is None


def test_mix_names_are_not_rule_types() -> None:
    assert not {"q4_k_m", "q3_k_s", "q2_k_s"} & GGUF_RULE_TYPES


def test_rules_that_decide_nothing_are_told() -> None:
    rules = [Rule.parse(text) for text in ("ffn=q6_k", "ffn_up=q8_0", "norm=f16", "attn=q4_k")]
    names = ["blk.0.ffn_up.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]
    assert unused_rules(rules, names, kept={"blk.0.attn_norm.weight"}) == [
        "rule 'ffn_up=q8_0' has no effect: earlier rules match all its tensors",
        "rule 'norm=f16' matches only tensors that are never quantized, such as blk.0.attn_norm.weight",
    ]
    assert unused_rules(rules[:1], ["output.weight"]) == ["rule 'ffn=q6_k' matches no tensor"]
