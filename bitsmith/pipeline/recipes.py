"""A recipe file in a run of `quantize`: its types, beside the user's own options, and what it does not name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.errors import UsageError, quoted
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.recipe.allocation.units import linear_of
from bitsmith.recipe.category import layer_of
from bitsmith.recipe.plan import Assignment
from bitsmith.recipe.recipe_file import RecipeFile
from bitsmith.recipe.rules import Rule
from bitsmith.recipe.target import Target


@dataclass(frozen=True)
class AppliedRecipe:
    """A recipe file that a run reads."""

    path: Path
    file: RecipeFile

    @classmethod
    def read(cls, path: Path) -> AppliedRecipe:
        """Read a file. Raises FileError if there is none, or if it is no recipe."""
        return cls(path, RecipeFile.read(path))

    def applied(self, to: Sequence[str], config: QuantizeConfig) -> tuple[list[str], QuantizeConfig]:
        """Targets and options with the recipe's; the user's own rules come first.

        Raises UsageError, naming the file, for a target that is unknown or of another container, and for `--pure`.
        """
        with self.named():
            own = Target.parse(self.file.to)
        for each in to:
            container = Target.parse(each).container
            if container != own.container:
                raise UsageError(
                    f"--to={quoted(each)}: the types of {self.path} are for {own.container}; leave --to out, or find "
                    f"types for {container} with a budget."
                )
        if config.pure:
            raise UsageError(f"--pure gives all matrices one type, and {self.path} gives each its own; give one.")
        changed = replace(
            config,
            rules=(*config.rules, *self.file.rules),
            keep=(*config.keep, *self.file.keep),
            group_size=self.file.group_size if config.group_size is None else config.group_size,
            symmetric=self.file.symmetric if config.symmetric is None else config.symmetric,
            recipe=None,
        )
        return list(to) or [self.file.to], changed

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about what the recipe says name the file."""
        try:
            yield
        except UsageError as error:
            told = [*map(repr, self.file.rules), *map(quoted, self.file.keep), repr(self.file.to.partition("/")[2])]
            if any(each in error.message for each in told):
                raise UsageError(f"{self.path}: {error.message}") from error
            raise

    def left_out(self, assignment: Assignment) -> tuple[str, ...]:
        """A warning about the layers of which no rule names a matrix: the recipe was found for a smaller model."""
        patterns = [Rule.parse(f"{text.rpartition('=')[0]}=f16").pattern for text in self.file.rules]
        named: dict[int, bool] = {}
        for tensor in assignment.tensors:
            layer = layer_of(linear_of(tensor))
            if tensor.format is not None and layer >= 0:
                found = any(pattern.search(tensor.info.name) for pattern in patterns)
                named[layer] = named.get(layer, False) or found
        missing = [layer for layer, found in named.items() if not found]
        if not missing or len(missing) == len(named):
            return ()
        return (
            f"no rule of {self.path} names a matrix of {_words(missing)}; their types are those of {assignment.target}",
        )


def _words(layers: Sequence[int]) -> str:
    """Numbers of layers in words, in order."""
    first, last = min(layers), max(layers)
    if len(layers) == 1:
        return f"layer {first}"
    if len(layers) == last - first + 1:
        return f"layers {first} to {last}"
    return f"{len(layers)} layers, the first of them {first}"
