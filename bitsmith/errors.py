"""The exceptions that bitsmith raises on purpose.

A message is one paragraph. It names the file or tensor, what was expected, what was found and what to do.
The command line prints it on stderr and exits with `exit_code`.
"""


class BitsmithError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(BitsmithError):
    """The call itself is wrong: an unknown name, an option out of range, options that exclude each other."""

    exit_code = 2


class FileError(BitsmithError):
    """A file is missing, damaged, lies about itself, or cannot be written."""


class UnsupportedError(BitsmithError):
    """The input is valid, but bitsmith does not support it."""


class TensorError(BitsmithError):
    """A named tensor holds values that cannot be used (NaN, Inf, overflow)."""
