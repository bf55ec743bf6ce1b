"""A chat template in Ollama's language, made from what the model's own template writes, and checked against it.

Ollama's templates are Go templates. Only those of one form are made: each message is a text before, its content, and a
text after, by its role. What a Jinja template does beyond that (thoughts, tools, the first message) shows when the two
are compared on conversations, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitsmith.errors import BitsmithError, UnsupportedError
from bitsmith.models.tokenizer import Tokenizer

_WORDS = {"system": "qzsystem", "user": "qzuser", "assistant": "qzassistant", "again": "qzagain"}
_INSTEAD = "use --for=llama.cpp, whose server runs the model's own template"


@dataclass(frozen=True)
class _Form:
    """What a template writes.

    around: the texts before and after the content of each role's messages
    answer: before the answer
    untold: at the beginning of a conversation without a system message
    """

    around: Mapping[str, tuple[str, str]]
    answer: str
    untold: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What Ollama writes."""
        said = [f"{self.around[m['role']][0]}{m['content']}{self.around[m['role']][1]}" for m in messages]
        first = "" if messages[0]["role"] == "system" else self.untold
        return first + "".join(said) + self.answer

    def as_go(self) -> str:
        """The template's text."""
        parts: list[str] = []
        for role, (before, after) in self.around.items():
            test = "if" if not parts else "else if"
            parts.append(f'{{{{ {test} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        first = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.untold}{{{{ end }}}}' if self.untold else ""
        return first + "{{ range .Messages }}" + "".join(parts) + "{{ end }}{{ end }}" + self.answer


def as_go_template(tokenizer: Tokenizer) -> str:
    """The template for Ollama. Raises UnsupportedError if its language cannot say what the model's template says."""
    form = _form(tokenizer)
    texts = [form.answer, form.untold, *(text for pair in form.around.values() for text in pair)]
    if any(mark in text for text in texts for mark in ("{{", "}}", '"""')):
        raise UnsupportedError(f"the chat template writes braces or quotes that a Modelfile cannot hold; {_INSTEAD}.")
    for messages in _conversations("system" in form.around):
        if form.render(messages) != _rendered(tokenizer, messages):
            raise UnsupportedError(
                f"the chat template does more than put texts around messages, which Ollama's language cannot say; "
                f"{_INSTEAD}."
            )
    return form.as_go()


def _form(tokenizer: Tokenizer) -> _Form:
    user, again = ({"role": "user", "content": _WORDS[word]} for word in ("user", "again"))
    said = {"role": "assistant", "content": _WORDS["assistant"]}
    one = _rendered(tokenizer, [user], answer=False)
    first, ends_user = _apart(one, "user")
    _, between, ends_said = _apart(_rendered(tokenizer, [user, said], answer=False), "user", "assistant")
    _, _, turned, _ = _apart(_rendered(tokenizer, [user, said, again], answer=False), "user", "assistant", "again")
    if not (between.startswith(ends_user) and turned.startswith(ends_said)):
        raise UnsupportedError(f"the chat template does not end each message in the same way; {_INSTEAD}.")
    begins_user = turned.removeprefix(ends_said)
    asked = _rendered(tokenizer, [user])
    if not (first.endswith(begins_user) and asked.startswith(one)):
        raise UnsupportedError(f"the chat template does not begin each message in the same way; {_INSTEAD}.")
    around = {"user": (begins_user, ends_user), "assistant": (between.removeprefix(ends_user), ends_said)}
    told = {"role": "system", "content": _WORDS["system"]}
    try:
        begins_system, middle, _ = _apart(_rendered(tokenizer, [told, user], answer=False), "system", "user")
        around = {"system": (begins_system, middle.removesuffix(begins_user)), **around}
    except UnsupportedError:
        pass  # the template takes no system message
    return _Form(around, asked.removeprefix(one), first.removesuffix(begins_user))


def _apart(text: str, *words: str) -> list[str]:
    """The texts around words, which must stand there once and in this order."""
    found, rest = [], text
    for word in words:
        before, there, rest = rest.partition(_WORDS[word])
        if not there:
            raise UnsupportedError(f"the chat template does not write each message once; {_INSTEAD}.")
        found.append(before)
    if any(word in part for word in _WORDS.values() for part in (*found, rest)):
        raise UnsupportedError(f"the chat template does not write each message once; {_INSTEAD}.")
    return [*found, rest]


def _conversations(system: bool) -> list[list[dict[str, str]]]:
    turns = [{"role": role, "content": f"{role} {n}, say\nmore"} for n in range(3) for role in ("user", "assistant")]
    found = [turns[:1], turns[:3], turns[:5]]
    told = [{"role": "system", "content": "Be brief."}]
    return found + ([told + each for each in found] if system else [])


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
    """What the model's template writes, without the start token, which Ollama's engine adds itself."""
    try:
        text = tokenizer.chat(messages, add_generation_prompt=answer)
    except BitsmithError as error:
        raise UnsupportedError(f"the chat template refuses a conversation ({error.message}); {_INSTEAD}.") from error
    bos = tokenizer.bos
    if bos is None or not tokenizer.adds_bos:
        return text
    return text.removeprefix(tokenizer.vocabulary.tokens[bos])
