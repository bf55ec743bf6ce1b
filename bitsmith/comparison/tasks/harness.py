"""The same models for lm-eval, EleutherAI's harness, under the name "bitsmith" (Gao et al.; the extra "tasks").

import bitsmith.comparison.tasks.harness as harness
lm_eval.simple_evaluate(model=harness.harness_model(bitsmith.load("model.gguf")), tasks=["hellaswag"])
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bitsmith.comparison.tasks.answering import Pair, encode_pair, likelihoods
from bitsmith.comparison.tasks.scores import TaskScore
from bitsmith.errors import FileError, UsageError

if TYPE_CHECKING:
    from bitsmith.runtime.language_model import LanguageModel

_METRICS = ("exact_match,strict-match", "exact_match,none", "acc_norm,none", "acc,none")  # the first that a task has
_USUAL_TOKENS = 256  # of an answer, where a task does not say


def require_harness(names: Sequence[str]) -> None:
    """Raise UsageError if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError(
            f"--tasks={names[0]}: neither a file nor 'made'; tasks of lm-eval need it: pip install 'bitsmith[tasks]'."
        )


def harness_version() -> str:
    """The installed lm-eval's version."""
    return version("lm_eval")


def harness_model(model: LanguageModel) -> Any:
    """A model of lm-eval, an `lm_eval.api.model.LM`, that computes with `model`."""
    base: type[Any] = import_module("lm_eval.api.model").LM

    class Bitsmith(base):  # type: ignore[misc]
        """Log-likelihoods and generation by bitsmith."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            pairs = [encode_pair(model, *request.args) for request in requests]
            return [(each.total, each.greedy) for each in likelihoods(model, pairs)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [rolling(model, request.args[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return [_until(model, *request.args) for request in requests]

    return Bitsmith()


def rolling(model: LanguageModel, text: str) -> float:
    """Log-likelihood of a whole text, nats, in pieces as long as the context that do not overlap.

    The first token is predicted from the start token where the model has one, and not at all elsewhere.
    """
    ids = model.tokenizer.encode(text, add_special=False)
    before = model.tokenizer.bos if model.tokenizer.bos is not None else ids[0] if ids else 0
    rest = ids if model.tokenizer.bos is not None else ids[1:]
    pairs = []
    for start in range(0, len(rest), model.config.context):
        piece = tuple(rest[start : start + model.config.context])
        pairs.append(Pair((before,), piece))
        before = piece[-1]
    return sum(each.total for each in likelihoods(model, pairs))


def _until(model: LanguageModel, context: str, options: dict[str, Any]) -> str:
    """Greedy text up to the first of the stops. lm-eval cuts it no further."""
    stops = options.get("until") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    most = int(options.get("max_gen_toks", _USUAL_TOKENS))
    ids = model.prompt_ids(context)[-max(1, model.config.context - most) :]
    text = ""
    stream = model.stream(ids, max_tokens=most, temperature=0.0)
    for piece in stream:
        text += piece
        if any(stop in text for stop in stops):
            break
    stream.close()
    cuts = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(cuts)] if cuts else text


def harness_scores(model: LanguageModel, name: str, *, limit: int | None, shots: int | None) -> list[TaskScore]:
    """The score of a task or a group of lm-eval.

    shots: number of examples before each question; None: as the task says
    Raises UsageError for one that is not known, FileError where its data cannot be had.
    """
    evaluator = import_module("lm_eval.evaluator")
    try:
        found = evaluator.simple_evaluate(
            model=harness_model(model), tasks=[name], limit=limit, num_fewshot=shots, bootstrap_iters=0
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"--tasks={name}: lm-eval does not know it, or cannot run it ({error}).") from error
    except (OSError, ConnectionError) as error:
        raise FileError(f"--tasks={name}: lm-eval cannot get its data ({error}); give a local file.") from error
    results = {**found.get("results", {}), **found.get("groups", {})}
    return [score_of(name, results.get(name) or next(iter(results.values())), found)]


def score_of(name: str, values: dict[str, Any], found: dict[str, Any]) -> TaskScore:
    """A task's first known metric with its error."""
    metric = next((each for each in _METRICS if each in values), None)
    if metric is None:
        raise UsageError(f"--tasks={name}: bitsmith reads accuracy and exact match of lm-eval, and it has neither.")
    measure, _, kind = metric.partition(",")
    value, error = float(values[metric]), values.get(f"{measure}_stderr,{kind}")
    half = 1.96 * float(error) if isinstance(error, int | float) else 0.0
    count = sum(int(each.get("effective", 0)) for each in found.get("n-samples", {}).values())
    return TaskScore(f"{name} ({measure})", value, max(0.0, value - half), min(1.0, value + half), count)
