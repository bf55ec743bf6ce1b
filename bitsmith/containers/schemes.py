"""Schemes by name: "int4", "int4-g64-asym", "w8a16-channel"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from bitsmith.containers import find_container
from bitsmith.containers.container import ModuleContainer, Scheme
from bitsmith.errors import UsageError

_SUFFIX = re.compile(r"-(g[1-9]\d{0,5}|channel|asym|sym)$")


def schemes_of(container: str) -> Mapping[str, Scheme]:
    """The schemes of a container by name, without suffixes. Raises UsageError for a container without any."""
    row = find_container(container)
    if not isinstance(row, ModuleContainer):
        raise UsageError(f"{container} has no schemes; it names formats.")
    return row.schemes


def parse(container: str, text: str) -> Scheme:
    """Read "int4", "int4-g64-asym", "w8a16-channel". Raises UsageError for a name unknown to the container."""
    schemes = schemes_of(container)
    base, group, asymmetric = text.strip().lower(), None, None
    while base not in schemes and (match := _SUFFIX.search(base)):
        base, suffix = base[: match.start()], match[1]
        if suffix in ("asym", "sym") and asymmetric is None:
            asymmetric = suffix == "asym"
        elif group is None and suffix not in ("asym", "sym"):
            group = 0 if suffix == "channel" else int(suffix[1:])
        else:
            base = ""  # the same suffix twice
    if base not in schemes:
        raise UsageError(
            f"{container} has no scheme {text!r}; known: {', '.join(schemes)}"
            + ("; schemes with groups also take endings such as -g64, -channel and -asym." if base else ".")
        )
    return adjusted(container, base, schemes[base], group, asymmetric)


def adjusted(container: str, name: str, scheme: Scheme, group: int | None, asymmetric: bool | None) -> Scheme:
    """The scheme with another group size (0: whole rows) or symmetry. Raises UsageError if it allows no choice."""
    if group is not None:
        if not scheme.grouped and group != scheme.group:
            raise UsageError(f"{container}/{name} has one scale per row or tensor, no groups; leave out --group-size.")
        if scheme.grouped and scheme.group is not None and group != scheme.group:
            raise UsageError(f"{container}/{name} and --group-size contradict each other; give the size once.")
        if scheme.known_groups and group not in scheme.known_groups:
            known = ", ".join(map(str, scheme.known_groups))
            found = group or "a whole row"
            raise UsageError(f"{container}/{name} has blocks of {known} weights, not of {found}; give one of these.")
        scheme = replace(scheme, group=group)
    if asymmetric is not None and asymmetric != scheme.asymmetric:
        if not scheme.optional_zeros:
            held = "always has" if scheme.asymmetric else "has no"
            raise UsageError(f"{container}/{name} {held} zero points; leave out {'--asym' if asymmetric else '--sym'}.")
        scheme = replace(scheme, asymmetric=asymmetric)
    return scheme
