"""Windows are cut as llama-perplexity cuts them; texts that cannot be scored are refused."""

import numpy as np
import pytest

from bitsmith.errors import FileError, UsageError
from bitsmith.evaluation.windows import check_context, cut_windows


def test_the_second_half_is_scored_and_the_rest_dropped() -> None:
    windows = cut_windows(np.arange(100, 121), 10, start_token=None, name="text")
    assert len(windows) == 2
    assert windows.first == 5
    assert windows.targets.tolist() == [[106, 107, 108, 109], [116, 117, 118, 119]]
    assert windows.tokens.tolist() == [list(range(100, 110)), list(range(110, 120))]


def test_the_start_token_replaces_the_first_of_each_window() -> None:
    ids = np.arange(100, 120)
    windows = cut_windows(ids, 10, start_token=1, name="text")
    assert windows.tokens[:, 0].tolist() == [1, 1]
    assert windows.tokens[:, 1:].tolist() == [list(range(101, 110)), list(range(111, 120))]
    assert ids[0] == 100


def test_a_text_shorter_than_a_window() -> None:
    with pytest.raises(FileError, match=r"story\.txt: the text has 9 tokens, but one window needs 10"):
        cut_windows(np.arange(9), 10, start_token=None, name="story.txt")


@pytest.mark.parametrize("context", [-2, 0, 6, 511])
def test_a_context_that_cannot_be_halved(context: int) -> None:
    with pytest.raises(UsageError, match=f"found {context}"):
        check_context(context, 4096, "model.gguf")


def test_a_context_longer_than_the_models() -> None:
    check_context(1024, 1024, "model.gguf")
    with pytest.raises(UsageError, match=r"model\.gguf: a context of 1026 .* give context=1024"):
        check_context(1026, 1025, "model.gguf")
