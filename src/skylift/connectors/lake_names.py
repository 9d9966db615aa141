"""Where a table lies in a lake: `<company>/<table>`, names escaped so that file systems, S3, globs and readers take them as they are.

Letters and digits of any language, blanks and `-_.$&(),@` stay. Everything else becomes `!` and two hex digits per byte of UTF-8:
`%` and `=` too, which readers decode or take for a partition. A name that is too long keeps its beginning and ends in `!~` and a
hash; the log keeps the true one.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from skylift.model import TargetName

DEFAULT_SCHEMA = "main"           # the folder of what companies share
HIDDEN = "_skylift_"              # tables so named are skylift's own: no reader sees them
MAX_BYTES = 200                   # of an escaped name: file systems take 255, and stagings and readers add to it
_KEPT = set(" -_.$&(),@")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")     # no folder of Windows may be called so


def folder_of(name: TargetName) -> str:
    company = escape(name.schema) if name.schema else DEFAULT_SCHEMA
    if name.schema.lower() == DEFAULT_SCHEMA:
        company = _hex(company[0]) + company[1:]
    return f"{company}/{escape(name.table)}"


def escape(name: str) -> str:
    """`name` as the name of a folder: never empty, never hidden, and no other name's."""
    last = len(name) - 1
    text = "".join(c if c.isalnum() or (c in _KEPT and not (c in "._ " and i == 0) and not (c in ". " and i == last)) else _hex(c)
                   for i, c in enumerate(name))
    if _DEVICES.fullmatch(text):
        text = _hex(text[0]) + text[1:]
    if len(text.encode()) > MAX_BYTES:
        cut = text.encode()[:MAX_BYTES - 26].decode(errors="ignore")
        text = re.sub(r"!.?$", "", cut) + "!~" + blake2b(name.encode(), digest_size=12).hexdigest()
    return text or "!"


def unescape(text: str) -> str:
    """The name that was escaped, unless it was cut."""
    if text == "!":
        return ""
    return re.sub(r"(?:![0-9A-F]{2})+", lambda m: bytes.fromhex(m[0].replace("!", "")).decode(), text)


def _hex(character: str) -> str:
    return "".join(f"!{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
