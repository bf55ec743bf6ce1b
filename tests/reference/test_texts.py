"""The built-in texts are disjoint, deterministic and long enough, and say so when Python lacks them."""

import sys

import pytest

from bitsmith.errors import FileError
from bitsmith.reference import texts


def paragraphs(text: str) -> set[str]:
    return {each.strip() for each in text.split("\n\n") if len(each.strip()) > texts.REPEATED_FROM}


def test_texts_share_no_paragraph() -> None:
    evaluation, calibration = texts.evaluation_text(), texts.calibration_text()
    assert len(paragraphs(evaluation)) > 200
    assert not paragraphs(evaluation) & paragraphs(calibration)
    lines = [{line for line in text.split("\n") if len(line) > 50} for text in (evaluation, calibration)]
    assert len(lines[0] & lines[1]) < 0.01 * len(lines[0])


def test_texts_are_long_enough_and_clean() -> None:
    for text, characters in [(texts.evaluation_text(), 80_000), (texts.calibration_text(), 160_000)]:
        assert len(text) > characters
        assert text == text.encode().decode()
        assert "\r" not in text


def test_texts_are_the_same_every_time() -> None:
    assert texts.evaluation_text() == texts.evaluation_text()
    assert texts.calibration_text() == texts.calibration_text()


def test_repeated_paragraphs_stay_where_they_first_occur() -> None:
    long = "a paragraph that is long enough to count as a repetition"
    topics = {"b": f"Head\n\n{long}\n\nown\n", "a": f"Head\n\n{long}\n", "c": long}
    assert texts.distinct_topics(topics) == {"a": f"Head\n\n{long}", "b": "Head\n\nown"}


def test_a_new_topic_moves_no_other() -> None:
    assert texts.for_evaluation("types")
    assert not texts.for_evaluation("compound")
    before = texts.distinct_topics({"types": "one", "compound": "two"})
    after = texts.distinct_topics({"types": "one", "compound": "two", "added": "three"})
    assert {name: after[name] for name in before} == before


def test_python_without_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    for text in (texts.evaluation_text, texts.calibration_text):
        with pytest.raises(FileError, match='text="FILE"'):
            text()
