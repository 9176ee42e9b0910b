"""The one error the user sees.

Bad input raises `U1Error`: what is wrong, where (file, key, value) and what to do about it. The command line and
the nodes print it as it is; a traceback is left for mistakes of our own.
"""

import difflib
from collections.abc import Iterable


class U1Error(Exception):
    """Something the user can mend. The message is whole: what, where, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that point a misspelt `name` at the closest of `known`: "; did you mean 'attn'?", or nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
