"""Calibration text that the model generates itself: `--calibration self`."""

from __future__ import annotations

import numpy as np

from bitsmith.calibration.sources import CalibrationTokens, Request, own_text
from bitsmith.errors import FileError
from bitsmith.runtime.generate import generate_batch
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.sampling import Sampling
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder

BATCH = 32  # texts generated together
_STATE = "own-text"  # of a work folder
_SHORTEST = 8  # minimum average length of a text, in tokens


def generate_tokens(
    request: Request, model: LanguageModel, *, work: WorkFolder | None = None, report: Report = silent
) -> CalibrationTokens:
    """Windows of text that the model generates without a prompt, as in LLM-QAT (Liu et al. 2023, section 3.1).

    Each text begins with the start token. If the tokenizer adds none, the first token is drawn with the seed. Later
    tokens are drawn at temperature 1 from the whole vocabulary, until an end token or a window's length. Texts follow
    each other without gaps. The same seed gives the same tokens.
    work: where the tokens are kept; what an earlier start has kept there is continued. None: nowhere
    Raises FileError if the texts are too short.
    """
    needed = request.windows * request.context
    random = np.random.default_rng(request.seed)
    start = model.tokenizer.bos if model.tokenizer.adds_bos else None
    ids: list[int] = []
    if work is not None:
        ids = _read(work, random)
    while len(ids) < needed:
        report(Progress("generate", len(ids), needed, "tokens"))
        count = min(BATCH, -(-(needed - len(ids)) // request.context))
        drawn = random.integers(0, min(model.tokenizer.size, model.config.vocab), count)
        firsts = [int(token) if start is None else start for token in drawn]
        texts = generate_batch(
            model.decoder,
            [[first] for first in firsts],
            max_tokens=request.context - 1,
            sampling=Sampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=int(random.integers(1 << 62))),
            end_ids=model.tokenizer.end_ids,
        )
        if sum(len(text.tokens) for text in texts) < _SHORTEST * count:
            raise FileError(
                f"{model.name}: --calibration=self: the model ends its texts after fewer than {_SHORTEST} tokens on "
                "average; give a text with --calibration=FILE."
            )
        for first, text in zip(firsts, texts, strict=True):
            ids += [first, *text.tokens]
        if work is not None and work.pace.due:
            _keep(work, ids, random)
    report(Progress("generate", needed, needed, "tokens"))
    tokens = np.array(ids[:needed], np.int64).reshape(request.windows, request.context)
    if start is not None:
        tokens[:, 0] = start
    return CalibrationTokens(own_text(model.name), tokens, request.seed, all_experts=request.all_experts)


def _read(work: WorkFolder, random: np.random.Generator) -> list[int]:
    """The tokens that an earlier start has kept; `random` goes on behind them."""
    state = work.read(_STATE)
    if state is None:
        return []
    with state:
        random.bit_generator.state = state.values["random"]
        return [int(token) for token in state.array("ids")]


def _keep(work: WorkFolder, ids: list[int], random: np.random.Generator) -> None:
    with work.pace.keeping():
        if work.write(_STATE, {"random": random.bit_generator.state}, {"ids": np.array(ids, np.int64)}):
            work.add([{"said": f"{len(ids):,} tokens of the model's own text"}])
