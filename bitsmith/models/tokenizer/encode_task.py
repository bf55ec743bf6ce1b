"""The task of the process that encodes with a tokenizer.json whose steps are not known (see `pipeline`)."""

from __future__ import annotations

from typing import Any

import tokenizers

_loaded: dict[str, Any] = {}  # "plain" and "parsing" encoders, or "failed": why there are none


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load request["source"], the text of a tokenizer.json, or give the "ids" of request["text"].

    request["plain"]: control tokens in the text are text
    "failed" says what the library cannot do.
    """
    try:
        if "source" in request:
            _loaded.update({kind: _encoder(request["source"], kind == "plain") for kind in ("plain", "parsing")})
            return {}
        if "failed" in _loaded:
            return {"failed": _loaded["failed"]}
        encoder = _loaded["plain" if request["plain"] else "parsing"]
        return {"ids": encoder.encode(request["text"], add_special_tokens=False).ids}
    except MemoryError:
        raise
    except BaseException as error:  # the library panics, and has no narrower exception
        failed = f"{type(error).__name__}: {str(error)[:500]}"
        if "source" in request:
            _loaded["failed"] = failed
        return {"failed": failed}


def _encoder(source: str, plain: bool) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer.from_str(source)
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = plain
    return encoder
