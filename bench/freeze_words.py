"""Write the typed keywords of functions that take options: `bitsmith.quantize`, `LanguageModel.generate` and more.

    python bench/freeze_words.py [--root FOLDER]

Run it after a change to a class of `WORDS`; a test compares.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitsmith.calibration.config import ImatrixConfig
from bitsmith.comparison.config import CompareConfig
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.convert_config import ConvertConfig
from bitsmith.runtime.sampling import Sampling
from bitsmith.system.options import Option, options_of
from bitsmith.tune.config import QloraConfig
from bitsmith.tune.merge import MergeConfig
from bitsmith.tune.qat import QatConfig

WORDS = {  # file -> its class, the options it is made from, the function
    "bitsmith/calibration/words.py": ("ImatrixWords", ImatrixConfig, "bitsmith.imatrix"),
    "bitsmith/comparison/words.py": ("CompareWords", CompareConfig, "bitsmith.compare"),
    "bitsmith/pipeline/convert_words.py": ("ConvertWords", ConvertConfig, "bitsmith.convert"),
    "bitsmith/pipeline/words.py": ("QuantizeWords", QuantizeConfig, "bitsmith.quantize"),
    "bitsmith/runtime/sampling_words.py": ("SamplingWords", Sampling, "LanguageModel.generate"),
    "bitsmith/tune/merge_words.py": ("MergeWords", MergeConfig, "bitsmith.merge"),
    "bitsmith/tune/qat_words.py": ("QatWords", QatConfig, "bitsmith.tune_qat"),
    "bitsmith/tune/words.py": ("QloraWords", QloraConfig, "bitsmith.tune_qlora"),
}
_IMPORTS = {  # a name that annotations use -> where it comes from
    "Sequence": "from collections.abc import Sequence",
    "Path": "from pathlib import Path",
}


def source(name: str, config: type[Any], function: str) -> str:
    """The text of a module that holds the keywords of `function` as a TypedDict."""
    options = list(options_of(config))
    annotations = " ".join(option.annotation for option in options)
    imports = [line for word, line in _IMPORTS.items() if word in annotations]
    typing = "Required, TypedDict" if any(option.required for option in options) else "TypedDict"
    lines = [
        f'"""Generated from {config.__name__} by `python bench/freeze_words.py`: keywords of `{function}`."""',
        "",
        "from __future__ import annotations",
        "",
        *imports,
        f"from typing import {typing}",
        "",
        "",
        f"class {name}(TypedDict, total=False):",
        f'    """Options of `{function}`, see `{config.__module__}`."""',
    ]
    for option in options:
        lines += ["", *_entry(option)]
    return "\n".join(lines) + "\n"


def _entry(option: Option) -> Iterator[str]:
    yield f"    {option.name}: {f'Required[{option.annotation}]' if option.required else option.annotation}"
    yield from textwrap.wrap(
        f'"""{option.help}"""', 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="where `bitsmith/` is written")
    root = parser.parse_args().root
    for file, words in WORDS.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source(*words), encoding="utf-8")


if __name__ == "__main__":
    main()
