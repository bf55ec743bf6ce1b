"""Text for terminals and logs. The function lies in `bitsmith.errors`, whose messages need it too."""

from __future__ import annotations

from bitsmith.errors import printable

__all__ = ["printable"]
