"""The values that a move could spoil: for every kind of column its boundaries, written as every database takes them.

A value is an int, a bool, a float, bytes or a text; decimals, dates, times and GUIDs are texts. `canonical` gives the one form in
which what two databases hold is compared; it is this file's own reading of the kinds, not skylift's.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

MANY = "9" * 18 + "." + "9" * 20

KINDS: dict[str, dict[str, Any]] = {
    "boolean": {"false": False, "true": True},
    "int16": {"least": -(2**15), "greatest": 2**15 - 1},
    "int32": {"least": -(2**31), "greatest": 2**31 - 1},
    "int64": {"least": -(2**63), "0": 0, "greatest": 2**63 - 1},
    "uint8": {"0": 0, "greatest": 255},
    "uint64": {"0": 0, "greatest": 2**64 - 1},
    "decimal(38,20)": {"0": "0", "greatest": MANY, "least": f"-{MANY}", "smallest": "0." + "0" * 19 + "1",
                       "20 places": "123456789012345678.12345678901234567891"},
    "decimal(18,2)": {"greatest": "9999999999999999.99", "least": "-9999999999999999.99"},
    "numeric": {"20 places": "0.12345678901234567891", "50 digits": "1" * 25 + "." + "2" * 25, "NaN": "NaN"},
    "float32": {"0.1": 0.10000000149011612, "greatest": 3.4028234663852886e38, "smallest": 1.401298464324817e-45},
    "float64": {"0.1 + 0.2": 0.1 + 0.2, "-0": -0.0, "smallest": 5e-324, "greatest": 1.7976931348623157e308, "NaN": math.nan,
                "Infinity": math.inf, "-Infinity": -math.inf},
    "text": {"empty": "", "blank": " ", "trailing blanks": "a  ", "4-byte": "😀𝔘", "combining": "é ﬁ ß", "line breaks": "a\r\nb\tc",
             "quotes": "'\"\\`%_;--", "NUL": "a\0b", "100,000 characters": "ä" * 100_000},
    "binary": {"empty": b"", "zero": b"\0", "every byte": bytes(range(256)), "1 MB": b"\xff\0" * 500_000},
    "date": {"0001": "0001-01-01", "1582": "1582-10-10", "1753": "1753-01-01", "leap": "2024-02-29", "9999": "9999-12-31"},
    "datetime": {"0001": "0001-01-01 00:00:00", "1753": "1753-01-01 00:00:00", "microsecond": "2026-01-02 03:04:05.000001",
                 "7 digits": "2026-01-02 03:04:05.1234567", "9999": "9999-12-31 23:59:59.999999"},
    "datetime with offset": {"UTC": "2026-01-02 03:04:05.678901+00:00", "offset": "2026-01-02 03:04:05+05:30"},
    "time": {"midnight": "00:00:00", "last": "23:59:59.999999", "7 digits": "12:34:56.1234567"},
    "guid": {"mixed": "01234567-89AB-CDEF-0123-456789ABCDEF", "zero": "00000000-0000-0000-0000-000000000000",
             "order": "ffffffff-0000-0000-0000-000000000001"},
    "json": {"object": '{"b": 1.10, "a": [null, "ä"]}'},
}


def canonical(kind: str, value: Any) -> Any:
    """What a database's driver, or its own cast to text, says of a value, as something that can be compared; None stays None."""
    if value is None:
        return None
    if isinstance(value, memoryview | bytearray):
        value = bytes(value)
    if kind == "boolean":
        return {"t": True, "f": False, "true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    if kind in ("int16", "int32", "int64", "uint8", "uint64"):
        return int(value)
    if kind in ("decimal(38,20)", "decimal(18,2)", "numeric"):
        number = Decimal(value if isinstance(value, Decimal) else str(value))
        return str(number) if number.is_nan() else _shortest(number)
    if kind in ("float32", "float64"):
        number = float(value)
        return "NaN" if math.isnan(number) else number.hex()
    if kind in ("date", "datetime", "datetime with offset", "time"):
        return _moment(kind, str(value))
    if kind == "guid":
        return str(value).lower().strip("{}")
    return value


def _shortest(number: Decimal) -> tuple[Any, ...]:
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits))
    kept = text.rstrip("0")
    if not kept:
        return 0, "0", 0
    return sign, kept, int(exponent) + len(text) - len(kept)


def _moment(kind: str, text: str) -> tuple[Any, ...] | str:
    """(date, time, fraction without trailing zeros, offset in minutes): what is missing is zero."""
    found = re.fullmatch(r"(?:(\d{4}-\d\d-\d\d))?[ T]?(?:(\d\d:\d\d)(?::(\d\d))?(?:\.(\d+))?)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?", text)
    if not found:
        return text
    date, clock, second, fraction, offset = found.groups()
    if kind == "datetime with offset":
        return _in_utc(date, clock or "00:00", second or "00", (fraction or "").rstrip("0"), offset or "Z")
    return date if kind == "date" else (date, clock or "00:00", second or "00", (fraction or "").rstrip("0"))


def _in_utc(date: str, clock: str, second: str, fraction: str, offset: str) -> tuple[Any, ...]:
    from datetime import datetime, timedelta

    minutes = 0
    if offset not in ("Z", "UTC"):
        digits = offset[1:].replace(":", "").ljust(4, "0")
        minutes = (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if offset[0] == "-" else 1)
    return (str(datetime.fromisoformat(f"{date} {clock}:{second}") - timedelta(minutes=minutes)), fraction)
