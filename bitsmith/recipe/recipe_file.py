"""Recipe files: which types the tensors of a model get, in YAML that people read, edit and use for sister models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError

VERSION = 1
_MOST_BYTES = 4 << 20
_KEYS = {"bitsmith_recipe", "to", "rules", "keep", "group_size", "symmetric", "about"}


@dataclass(frozen=True)
class RecipeFile:
    """The content of a recipe file.

    to: the target, as in `--to`: the types of tensors that no rule names
    rules: "REGEX=TYPE", the first match wins
    group_size, symmetric, keep: see `QuantizeConfig`
    about: where it comes from; for people
    """

    to: str
    rules: tuple[str, ...]
    group_size: int | None = None
    symmetric: bool | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    def text(self) -> str:
        """YAML."""
        import yaml

        content: dict[str, Any] = {"bitsmith_recipe": VERSION, "about": dict(self.about), "to": self.to}
        content |= {} if self.group_size is None else {"group_size": self.group_size}
        content |= {} if self.symmetric is None else {"symmetric": self.symmetric}
        content |= {"keep": list(self.keep)} if self.keep else {}
        content["rules"] = list(self.rules)
        head = (
            "# Types of tensors. `bitsmith quantize MODEL --recipe THIS` uses them. The first rule that matches wins.\n"
        )
        return head + str(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))

    @classmethod
    def read(cls, path: Path) -> RecipeFile:
        """Read a file. Raises FileError if there is none, or if it is no recipe."""
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise FileError(f"{path}: a recipe has at most {_MOST_BYTES:,} bytes; is this another file?")
            data = path.read_bytes()
        except OSError as error:
            raise FileError(
                f"{path}: the recipe cannot be read ({error.strerror}); give a file that `--recipe` wrote together "
                "with `--bits`, `--size` or `--fit`."
            ) from error
        return cls._parsed(path, _plain(path, data))

    @classmethod
    def _parsed(cls, path: Path, content: Any) -> RecipeFile:
        if not isinstance(content, dict) or "bitsmith_recipe" not in content:
            raise FileError(f"{path}: this is no recipe: `bitsmith_recipe: {VERSION}` is missing.")
        if content["bitsmith_recipe"] != VERSION:
            raise FileError(
                f"{path}: version {content['bitsmith_recipe']!r:.20} of recipes is unknown; expected {VERSION}."
            )
        unknown = next((key for key in content if key not in _KEYS), None)
        if unknown is not None:
            raise FileError(f"{path}: {unknown!r:.40} is unknown; a recipe has {', '.join(sorted(_KEYS))}.")
        to, rules, keep = content.get("to"), content.get("rules", []), content.get("keep", [])
        if not isinstance(to, str):
            raise FileError(f"{path}: `to` should be a target such as gguf/q4_k_m, found {to!r:.40}.")
        if not isinstance(rules, list) or not all(isinstance(each, str) for each in rules):
            raise FileError(f"{path}: `rules` should be a list of texts such as 'ffn_down=q6_k'.")
        if not isinstance(keep, list) or not all(isinstance(each, str) for each in keep):
            raise FileError(f"{path}: `keep` should be a list of regular expressions such as 'layers\\.0\\.'.")
        group, symmetric = content.get("group_size"), content.get("symmetric")
        if not (group is None or (isinstance(group, int) and not isinstance(group, bool))):
            raise FileError(f"{path}: `group_size` should be a whole number, found {group!r:.40}.")
        if not (symmetric is None or isinstance(symmetric, bool)):
            raise FileError(f"{path}: `symmetric` should be true or false, found {symmetric!r:.40}.")
        about = content.get("about")
        return cls(to, tuple(rules), group, symmetric, about if isinstance(about, dict) else {}, tuple(keep))


def _plain(path: Path, data: bytes) -> Any:
    """The value of a YAML text without aliases, which could make a small file huge. Raises FileError."""
    import yaml

    try:
        text = data.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise FileError(f"{path}: a recipe has no aliases (*name); write the values out.")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FileError(f"{path}: this is not YAML: {_said(error):.120}") from error


def _said(error: Exception) -> str:
    """What is wrong with a text, and where."""
    import yaml

    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
