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

_ROLES = ("system", "user", "assistant")
_WORDS = {"system": "qzsystem", "user": "qzuser", "assistant": "qzassistant"}
_INSTEAD = "use --for=llama.cpp, whose server runs the model's own template"


@dataclass(frozen=True)
class _Form:
    """around: the texts before and after the content of each role's messages; answer: before the answer"""

    around: Mapping[str, tuple[str, str]]
    answer: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What Ollama writes."""
        said = [f"{self.around[m['role']][0]}{m['content']}{self.around[m['role']][1]}" for m in messages]
        return "".join(said) + self.answer

    def as_go(self) -> str:
        """The template's text."""
        parts: list[str] = []
        for role, (before, after) in self.around.items():
            test = "if" if not parts else "else if"
            parts.append(f'{{{{ {test} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        return "{{ range .Messages }}" + "".join(parts) + "{{ end }}{{ end }}" + self.answer


def as_go_template(tokenizer: Tokenizer) -> str:
    """The template for Ollama. Raises UnsupportedError if its language cannot say what the model's template says."""
    form = _form(tokenizer)
    texts = [form.answer, *(text for pair in form.around.values() for text in pair)]
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
    user = {"role": "user", "content": _WORDS["user"]}
    one = _rendered(tokenizer, [user])
    open_end = _rendered(tokenizer, [user], answer=False)
    before, after = _split(open_end, _WORDS["user"])
    around = {"user": (before, after)}
    if not one.startswith(open_end):
        raise UnsupportedError(f"the chat template ends a conversation in an unusual way; {_INSTEAD}.")
    said = _rendered(tokenizer, [user, {"role": "assistant", "content": _WORDS["assistant"]}], answer=False)
    around["assistant"] = _split(said.removeprefix(open_end), _WORDS["assistant"])
    try:
        told = _rendered(tokenizer, [{"role": "system", "content": _WORDS["system"]}, user], answer=False)
        around = {"system": _split(told.removesuffix(open_end), _WORDS["system"]), **around}
    except UnsupportedError:
        pass  # the template takes no system message, or writes it into the user's: compared below
    return _Form(around, one.removeprefix(open_end))


def _split(text: str, word: str) -> tuple[str, str]:
    before, found, after = text.partition(word)
    if not found or word in after or any(other in text for other in _WORDS.values() if other != word):
        raise UnsupportedError(f"the chat template does not write each message once; {_INSTEAD}.")
    return before, after


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
