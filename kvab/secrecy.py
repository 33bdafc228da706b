"""What must not be kept or shown: tokens and keys inside texts that others wrote.

Input: a log, an event, a command line. Output: the same text with every secret masked.
"""

from __future__ import annotations

import re

SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{8,}"  # a token of the Hugging Face hub
    r"|(?i:(?P<scheme>bearer)\s+\S+)"
    r"""|(?P<option>--api-key|--header|-H)(?:\s+|=)(?:'[^']*'|"[^"]*"|\S+)"""
)


def hide(text: str) -> str:
    """Return a text with its secrets replaced by ``***``; what announces them stays."""

    def mask(found: re.Match[str]) -> str:
        name = found["scheme"] or found["option"]
        return f"{name} ***" if name else "***"

    return SECRETS.sub(mask, text)
