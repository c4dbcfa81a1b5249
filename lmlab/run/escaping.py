"""The one door through which text enters the report's HTML."""

from __future__ import annotations

import re
from html import escape


def text(value: object) -> str:
    """Any text, safe inside HTML.

    It is escaped; control characters become visible, half surrogate pairs and reversals of the writing direction are replaced.
    """
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), str(value).replace("\r\n", "\n"))
    shown = re.sub(r"[\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffe\uffff]", "\ufffd", shown)
    return escape(shown)
