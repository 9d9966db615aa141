"""What can go wrong, as a tree whose branches are consequences.

    SkyliftError            message: what happened and where; hint: what you can do
    ├── SetupError          nothing was started                      HTTP 400, exit 2
    ├── StateError          right request, wrong moment              HTTP 400, exit 3
    ├── NotFound            no such run, company, mapping ...        HTTP 404, exit 2
    ├── Conflict            somebody else changed it first           HTTP 409, exit 3
    ├── CopyError           this table failed, the others go on      detail row
    │   ├── SchemaChanged       its columns changed between runs
    │   ├── ValueRefused        a value the target cannot hold exactly
    │   ├── SourceChanged       rows moved under an untracked copy
    │   └── NotVerified         counts or hashes of source and target differ
    ├── SourceFailed        the source is gone and does not come back: the run fails, exit 1
    ├── TargetFailed        the target as a whole is unusable (full, gone, read-only): the run fails, exit 1
    ├── TimedOut            the work for a request was broken off    HTTP 408
    └── Transient           tried again after a pause (locked file, lost connection)

Secrets never stand in a message: pass every URL through `redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class SkyliftError(Exception):
    """Base of all errors. `code` is machine readable and stable: API, CLI `--json` and event log repeat it."""

    code = "Error"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SetupError(SkyliftError):
    code = "SetupError"


class StateError(SkyliftError):
    code = "StateError"


class NotFound(SkyliftError):
    code = "NotFound"


class Conflict(SkyliftError):
    code = "Conflict"


class CopyError(SkyliftError):
    code = "50007"  # behaviour.md §5.7: copying the table failed


class SchemaChanged(CopyError):
    code = "50005"

    def __init__(self, table: str, added: set[str], removed: set[str], retyped: Iterable[str] = ()) -> None:
        parts = [f"{word} {sorted(names)}" for word, names in
                 (("added", added), ("removed", removed), ("changed the type of", retyped)) if names]
        super().__init__(f"{table}: the source {', '.join(parts)} since the last run",
                         hint="copy it afresh: skylift run --kind full")


class ValueRefused(CopyError):
    code = "50011"


class SourceChanged(CopyError):
    code = "SourceChanged"


class NotVerified(CopyError):
    code = "NotVerified"


class SourceFailed(SkyliftError):
    code = "SourceFailed"


class TargetFailed(SkyliftError):
    code = "TargetFailed"


class TimedOut(SkyliftError):
    code = "TimedOut"


class Transient(SkyliftError):
    code = "Transient"


# The name of a secret is looked for from the beginning of a word only: a long word costs its length, not the square of it.
# A value is quoted with doubled quotes, or braced, or goes on to the next separator (ADO and ODBC syntax alike).
_SECRET = re.compile(r"""(://[^:/@\s]*:)[^@\s]+(@)|((?<!\w)\w*(?:passwor[dt]|pwd|key|secret|token|signature)\s*=\s*)"""
                     r"""(?:"(?:[^"]|"")*"?|'(?:[^']|'')*'?|\{(?:[^}]|\}\})*\}?|[^;&\s]*)""", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with the secrets of URLs and of `Key=Value;` connection strings replaced by ***."""
    return _SECRET.sub(lambda m: f"{m[1]}***{m[2]}" if m[1] else f"{m[3]}***", text)
