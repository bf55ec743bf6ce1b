"""BudgetConfig: the options that choose types by a budget, and recipe files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bitsmith.errors import UsageError
from bitsmith.system.options import option
from bitsmith.system.sizes import parse_size

_GROUP = "Budget"


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What the output may take. At most one of bits, size and fit; none: the types are those of `--to`."""

    bits: float | None = option(
        None,
        group=_GROUP,
        metavar="X",
        help="Choose the type of each tensor so that the file has at most X bits per weight and loses least: 4.25.",
    )
    size: str | None = option(
        None, group=_GROUP, metavar="SIZE", help="The same for the size of all output files: 5.2GB, 800MiB."
    )
    fit: str | None = option(
        None,
        group=_GROUP,
        metavar="WHERE",
        help="The same for a device or its memory, with the cache and what the runtime takes: rtx-4090, this, 24GB.",
    )
    context: int | None = option(
        None, group=_GROUP, help="With --fit: number of tokens; default: 8192, or the model's context if less."
    )
    kv: str | None = option(
        None, group=_GROUP, metavar="TYPE", help="With --fit: type of keys and values: f16 (default), q8_0, q4_0, ..."
    )
    tokens_per_second: float | None = option(
        None,
        group=_GROUP,
        metavar="X",
        help="With a budget: choose types that also generate X tokens a second on this machine, as `bench` measures.",
    )
    recipe: str | Path | None = option(
        None,
        group=_GROUP,
        metavar="FILE",
        help="With a budget: write the chosen types into this YAML file. Without: use the types of this file.",
    )

    def check_budget(self) -> None:
        """Raise UsageError for values that are never valid."""
        given = [flag for flag, value in self._budgets.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are different budgets; give one.")
        if self.bits is not None and not (math.isfinite(self.bits) and self.bits > 0):
            raise UsageError(f"--bits={self.bits:g}: expected a number above zero, for instance --bits=4.25.")
        if self.size is not None:
            try:
                parse_size(self.size)
            except UsageError as error:
                raise error.at("--size") from error
        speed = self.tokens_per_second
        if speed is not None and not (math.isfinite(speed) and speed > 0):
            raise UsageError(f"--tokens-per-second={speed:g}: expected a number above zero, such as 20.")
        if speed is not None and not given:
            raise UsageError(f"--tokens-per-second={speed:g} goes with a budget; give --bits, --size or --fit too.")
        for flag, value in (("--context", self.context), ("--kv", self.kv)):
            if value is not None and self.fit is None:
                raise UsageError(f"{flag}={value} says how much memory a cache takes, but there is no --fit.")

    @property
    def has_budget(self) -> bool:
        """Whether types are chosen by a budget."""
        return any(value is not None for value in self._budgets.values())

    @property
    def _budgets(self) -> dict[str, object]:
        return {"--bits": self.bits, "--size": self.size, "--fit": self.fit}
