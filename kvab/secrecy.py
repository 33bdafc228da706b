"""What must not be kept or shown: tokens and keys inside texts that others wrote.

Input: a log, an event, a command line, a manifest. Output: the same text with every secret masked.
"""

from __future__ import annotations

import re

VALUE = r"""(?:'[^'\n]*'|"(?:[^"\\\n]|\\.)*"|[^\s"',\]}\\]+)"""
SECRETS = re.compile(
    r"(?P<token>hf_[A-Za-z0-9]{8,})"  # of the Hugging Face hub
    r"""|(?P<scheme>(?i:bearer)\s+)[^\s"',\\]+"""
    # An argument as a shell, JSON or YAML writes it; its value stands in the next place.
    rf"""|(?P<option>(?<![\w-])(?:--api-key|--header|-H)["']?(?:\s*,\s*|=|\s+(?:-\s+)?)){VALUE}"""
    # A variable, assigned or as the name and value of a manifest.
    r"""|(?P<variable>(?:[A-Z0-9]+_)*(?:TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY)"""
    rf"""(?:=|["']?,?\s*["']?value["']?:\s*)){VALUE}"""
)


def hide(text: str) -> str:
    """Return a text with its secrets replaced by ``***``; what announces them stays."""

    def mask(found: re.Match[str]) -> str:
        announced = found["scheme"] or found["option"] or found["variable"] or ""
        value = found[0][len(announced) :]
        quote = value[0] if value[:1] in ("'", '"') else ""
        return f"{announced}{quote}***{quote}"

    return SECRETS.sub(mask, text)
