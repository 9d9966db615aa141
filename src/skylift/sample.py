"""A Business-Central-shaped on-premises database in one SQLite file, made from a seed, and changed like a working one.

Names follow behaviour.md §1; what must not be copied (§5.1) is there too: `$ndo$` and platform tables, users and permissions,
tables of an app that is no longer installed and of a company that is gone.

Rows are a zip of endless columns. A column repeats a pool of values; pools have different prime lengths, so rows do not repeat
within the product of those. Nothing is kept per row: ten million rows need the memory of ten thousand.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from skylift.errors import SetupError
from skylift.products.naming import sql_name

VERSION = "25.5.30849.0"             # an earlier version: product DynamicsBCLast, whose runs wait for runDataUpgrade
BASE = "437dbf0e-84ff-417a-965d-ed2bb9650972"
SYSTEM = "63ca2fa4-4f03-4f2b-a480-172fef340d3f"
RENTAL = "2c8d3f51-7a0e-4b6d-9f3c-5e1a8b4c7d20"
REMOVED = "9a1b7c33-0d52-4e8f-8a6b-1f2e3d4c5b6a"   # no longer installed
_APPS = ((SYSTEM, "System Application", "Microsoft"), (BASE, "Base Application", "Microsoft"), (RENTAL, "Rental", "Contoso"))
_COMPANIES = ("CRONUS International Ltd.", "Contoso A/S [Nordic]", 'Fabrikam 100% "Süd"', "Tailspin\\Toys", "Café 'Ünïcode'")
_BATCH_ROWS = 20_000
_PRIMES = (9973, 4999, 2003, 3001, 997, 1499, 7919, 1009, 5003, 2503, 6007, 1999, 8009, 1201, 3499)

# kind of a column -> its declared type. Exact values are declared with TEXT affinity: SQLite would make a float of a DECIMAL.
_TYPES = {
    "id": "INTEGER", "int": "INTEGER", "bool": "INTEGER", "big": "INTEGER", "stamp": "INTEGER", "dec": "DECIMALTEXT(38,20)",
    "date": "DATETIMETEXT", "time": "DATETIMETEXT", "guid": "GUIDTEXT(36)", "newguid": "GUIDTEXT(36)",
    "key": "NVARCHARTEXT(20)", "code": "NVARCHARTEXT(20)", "text": "NVARCHARTEXT(100)", "blob": "BLOB",
}
_SYSTEM_COLUMNS = ("$systemId newguid|$systemCreatedAt time|$systemCreatedBy guid|"
                   "$systemModifiedAt time|$systemModifiedBy guid|Last Changed By code")


@dataclass(frozen=True, slots=True)
class Spec:
    """A table. `columns`: 'name kind|name kind|..'; `share`: the fraction of the company's G/L entries it has as rows."""

    name: str                # business name
    columns: str
    key: tuple[str, ...] = ()
    share: float = 0.0
    limit: int = 10**18      # rows at most; 0 = stays empty
    suffix: str = f"${BASE}"
    spelled: bool = False    # the SQL name keeps the characters of the business name

    def sql(self, company: str = "") -> str:
        return (f"{sql_name(company)}$" if company else "") + (self.name if self.spelled else sql_name(self.name)) + self.suffix

    def typed(self) -> list[tuple[str, str]]:
        return [(name, kind) for name, _, kind in (column.rpartition(" ") for column in self.columns.split("|"))]

    def rows(self, entries: int) -> int:
        return min(self.limit, max(min(entries, 20), int(entries * self.share)))


def _app_table(name: str, columns: str, key: Sequence[str], share: float = 0.0, limit: int = 10**18, app: str = BASE) -> Spec:
    return Spec(name, f"timestamp stamp|{columns}|{_SYSTEM_COLUMNS}", tuple(key), share, limit, f"${app}")


_GL_ENTRY = _app_table("G/L Entry", (
    "Entry No_ id|G_L Account No_ code|Posting Date date|Document Type int|Document No_ code|Description text|"
    "Bal_ Account No_ code|Amount dec|Global Dimension 1 Code code|Global Dimension 2 Code code|User ID code|Source Code code|"
    "System-Created Entry bool|Prior-Year Entry bool|Job No_ code|Quantity dec|VAT Amount dec|Business Unit Code code|"
    "Journal Batch Name code|Reason Code code|Gen_ Posting Type int|Gen_ Bus_ Posting Group code|Gen_ Prod_ Posting Group code|"
    "Bal_ Account Type int|Transaction No_ int|Debit Amount dec|Credit Amount dec|Document Date date|"
    "External Document No_ code|Source Type int|Source No_ code|Additional-Currency Amount dec|Add_-Currency Debit Amount dec|"
    "Add_-Currency Credit Amount dec|Reversed bool|Reversed Entry No_ int|Dimension Set ID int|Last Modified DateTime time|"
    "Comment text|VAT Reporting Date date|Prod_ Order No_ code|FA Entry No_ int|Checksum big"), ["Entry No_"], 1.0)
_LEDGER = ("Entry No_ id|Posting Date date|Document No_ code|Description text|Currency Code code|Amount dec|"
           "Remaining Amt_ (LCY) dec|Open bool|Due Date date|Document Type int|Applies-to ID code")
_CARD = ("No_ key|Name text|Name 2 text|Address text|City text|Contact text|VAT Registration No_ code|Credit Limit (LCY) dec|"
         "Blocked int")
_CUSTOMER = _app_table("Customer", _CARD, ["No_"], 0.01)
_CUSTOMER_EXT = Spec(
    "Customer", f"timestamp stamp|No_ key|Rental Class${RENTAL} code|Deposit %${RENTAL} dec|Remark${RENTAL} text",
    ("No_",), 0.01, suffix=f"${BASE}$ext")
_KEYLESS = Spec("Import Buffer", "timestamp stamp|Line code|Text text|Amount dec", limit=500, suffix=f"${RENTAL}")
_WIDE = _app_table('Analysis "Wide" [200]', "Entry No_ id|" + "|".join(
    f"Field {n:03d} {('dec', 'code', 'text', 'date', 'int', 'guid', 'time')[n % 7]}" for n in range(1, 193)),
    ["Entry No_"], 0.001)

# In the order of their importance: `tables` of them are made per company, fillers after the last.
_PER_COMPANY = (
    _GL_ENTRY, _CUSTOMER, _CUSTOMER_EXT, _KEYLESS,
    _app_table("Reversal Entry", "Line No_ id|Description text|Amount dec", ["Line No_"], limit=0),
    _WIDE,
    _app_table("Sales Line", "Document Type int|Document No_ key|Line No_ id|No_ code|Description text|Quantity dec|"
               "Unit Price dec|Line Discount _ dec|Shipment Date date", ["Document Type", "Document No_", "Line No_"], 0.05),
    _app_table("Cust. Ledger Entry", _LEDGER, ["Entry No_"], 0.1),
    _app_table("Incoming Document Attachment", "Incoming Document Entry No_ int|Line No_ id|Name text|Content blob",
               ["Incoming Document Entry No_", "Line No_"], limit=200),
    # The identifiers of this table kept all their characters: which ones are replaced is a setting of the source database.
    Spec('Spend 50% [Old] "A/B"', 'Code key|Rate %.[x] dec|"Quoted" text', ("Code",), limit=50, suffix=f"${RENTAL}",
         spelled=True),
    Spec("Legacy Note", "timestamp stamp|No_ key|Note text", ("No_",), limit=30, suffix=""),
    _app_table("Vendor", _CARD, ["No_"], 0.005), _app_table("Item", _CARD + "|Unit Cost dec|GTIN code", ["No_"], 0.01),
    _app_table("G/L Account", _CARD, ["No_"], limit=300), _app_table("Vendor Ledger Entry", _LEDGER, ["Entry No_"], 0.05),
    _app_table("Item Ledger Entry", _LEDGER, ["Entry No_"], 0.1), _app_table("VAT Entry", _LEDGER, ["Entry No_"], 0.1),
    _app_table("Dimension Set Entry", "Dimension Set ID id|Dimension Code key|Dimension Value Code code",
               ["Dimension Set ID", "Dimension Code"], 0.02),
    _app_table("Sales Header", "Document Type int|No_ key|Order Date date|Sell-to Name text", ["Document Type", "No_"], 0.02),
    _app_table("Rental Contract", "No_ key|Customer No_ code|Start date|End date|Rate _ dec", ["No_"], limit=200, app=RENTAL),
)


def _platform_table(name: str, columns: str, key: str, limit: int) -> Spec:
    return Spec(name, f"timestamp stamp|{columns}", (key,), limit=limit, suffix="")


_CROSS_COMPANY = (
    _app_table("Upgrade Tags", "Tag key|Tag Timestamp time|Skipped Upgrade bool|Company text", ["Tag"], limit=120, app=SYSTEM),
    _app_table("Country/Region Template", "Code key|Name text|VAT Scheme code", ["Code"], limit=250),
    _app_table("Rental Fleet", "Serial No_ key|Description text|Value dec|Bought date", ["Serial No_"], limit=400, app=RENTAL),
    _platform_table("Record Link", "Link ID id|Record ID blob|URL1 text|Note blob|Company text", "Link ID", 80),
    _platform_table("Tenant Media", "ID newguid|Description text|Content blob|Mime Type code|Company Name text", "ID", 40),
    _platform_table("Feature Key", "ID key|Enabled int", "ID", 30),
)
_NEVER_COPIED = (
    _platform_table("User", "User Security ID newguid|User Name key|Full Name text", "User Security ID", 25),
    _platform_table("Access Control", "User Security ID newguid|Role ID code|Company Name text", "User Security ID", 60),
    _platform_table("Active Session", "Session ID id|User ID code|Login Datetime time", "Session ID", 3),
    _app_table("User Group Member", "User Group Code key|User Security ID guid", ["User Group Code"], limit=10),
    _app_table("Payroll Leftover", "No_ key|Amount dec", ["No_"], limit=20, app=REMOVED),
)


def create_sample(path: Path, *, companies: int = 3, rows: int = 1_000_000, tables: int = 150, seed: int = 1,
                  version: str = VERSION, progress: Callable[[int], None] = lambda rows: None) -> dict[str, int]:
    """Make the database; `{table: rows}`. The first company has `rows` G/L entries, each next one a quarter of those before.

    `tables` is the number of tables of each company; `progress` is told the number of rows after each 20,000 or less.
    The file appears when it is complete. Raises SetupError if it exists or cannot be written.
    """
    if companies < 1 or rows < 1 or tables < 1:
        raise SetupError("a sample has at least one company, one row and one table")
    if path.exists():
        raise SetupError(f"{path} exists already", hint="delete it or choose another path")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        database = sqlite3.connect(part, isolation_level=None)
        try:
            _build(database, companies, rows, tables, seed, version, progress)
        finally:
            database.close()
        os.replace(part, path)
    except (OSError, sqlite3.Error) as error:
        raise SetupError(f"{path} cannot be written: {error}", hint="check folder, permissions and free space") from None
    finally:
        with suppress(OSError):                          # gone when all went well
            part.unlink()
    return {spec.sql(company): wanted for spec, company, wanted in _plan(companies, rows, tables)}


def _plan(companies: int, rows: int, tables: int) -> list[tuple[Spec, str, int]]:
    """What to write: (table, company or '' for all, rows)."""
    fillers = map(_filler, range(1, tables - len(_PER_COMPANY) + 1))
    specs = [*_PER_COMPANY[:tables], *fillers]
    entries = [max(min(rows, 20), rows // 4**index) for index in range(companies)]
    plan = [(spec, name, spec.rows(wanted)) for name, wanted in zip(_names(companies), entries, strict=True) for spec in specs]
    plan += [(spec, "", spec.rows(rows)) for spec in _CROSS_COMPANY + _NEVER_COPIED]
    return [*plan, (_CUSTOMER, "Closed Company", 20)]    # a company that is no longer in the table Company


def sample_rows(companies: int, rows: int, tables: int) -> int:
    """The rows of a sample of that size, for a progress bar."""
    return sum(wanted for *_, wanted in _plan(companies, rows, tables))


def _names(companies: int) -> list[str]:
    return [_COMPANIES[n] if n < len(_COMPANIES) else f"Company {n + 1:04d} Ltd." for n in range(companies)]


def _build(database: sqlite3.Connection, companies: int, rows: int, tables: int, seed: int, version: str,
           progress: Callable[[int], None]) -> None:
    for pragma in ("page_size=8192", "journal_mode=off", "synchronous=off", "locking_mode=exclusive", "cache_size=-65536"):
        database.execute(f"pragma {pragma}")
    database.execute("begin")
    values = _Values(seed)
    for spec, company, wanted in _plan(companies, rows, tables):
        _create(database, spec.sql(company), spec.typed(), spec.key)
        _insert(database, spec, company, values.rows(spec, company, 1, wanted), progress)
    _catalogue(database, _names(companies), version, values)
    database.execute("commit")
    database.execute("pragma locking_mode=normal")
    database.execute("pragma journal_mode=wal")          # as an application would leave it: readers do not block writers


def _catalogue(database: sqlite3.Connection, names: list[str], version: str, values: _Values) -> None:
    """The tables in which a Business Central database describes itself."""
    describing: tuple[tuple[str, str, tuple[str, ...], Iterable[tuple]], ...] = (
        ("Company", "timestamp stamp|Name key|Evaluation Mode bool|Display Name text|Id newguid|Business Profile Id text",
         ("Name",), [(next(values.stamp), name, 0, f"{name} (display)", values.guid(name), "") for name in names]),
        ("NAV App Installed App", "App ID newguid|Package ID guid|Name text|Publisher text|Version Major int|Version Minor int|"
         "Version Build int|Version Revision int", ("App ID",),
         [(app.upper(), values.guid(app), name, publisher, *map(int, version.split("."))) for app, name, publisher in _APPS]),
        ("$ndo$tenantproperty", "tenantid key|applicationfamily text|applicationversion text", ("tenantid",),
         [("default", "W1", version)]),
        ("$ndo$dbproperty", "databaseversionno int|invalididentifierchars text|lasttimestamp big", (), []),
        ("$ndo$tableinfo", "name text|rows int", (), [("G_L Entry", 0)]))
    for table, columns, key, rows in describing:
        typed = Spec(table, columns).typed()
        _create(database, table, typed, key)
        database.executemany(f"insert into {_quote(table)} values ({','.join('?' * len(typed))})", rows)
    database.execute('insert into "$ndo$dbproperty" values (?, ?, ?)', (210, '."\\/\'%][', next(values.stamp)))


def _filler(n: int) -> Spec:
    kinds = ("text", "dec", "code", "date", "int", "bool", "guid", "time")
    fields = [f"Field {f} {kinds[(n + f) % len(kinds)]}" for f in range(1, 4 + n % 5)]
    return _app_table(f"Setup Table {n:04d}", "|".join(["Code key", "Line No_ id", *fields]),
                      ["Code", "Line No_"] if n % 3 else ["Line No_"], limit=20 + n * 37 % 381, share=0.001,
                      app=RENTAL if n % 4 == 0 else BASE)


def _create(database: sqlite3.Connection, table: str, columns: list[tuple[str, str]], key: tuple[str, ...]) -> None:
    whole = dict(columns).get(key[0]) == "id" if len(key) == 1 else False      # SQLite's own row number
    rules = {name: "" if kind == "blob" else " NOT NULL" for name, kind in columns}
    if whole:
        rules[key[0]] = " PRIMARY KEY"
    parts = [f"{_quote(name)} {_TYPES[kind]}{rules[name]}" for name, kind in columns]
    if key and not whole:
        parts.append(f"PRIMARY KEY ({','.join(map(_quote, key))})")
    database.execute(f"create table {_quote(table)} ({', '.join(parts)})")


def _insert(database: sqlite3.Connection, spec: Spec, company: str, rows: Iterator[tuple],
            progress: Callable[[int], None] = lambda rows: None) -> None:
    sql = f"insert into {_quote(spec.sql(company))} values ({','.join('?' * len(spec.typed()))})"
    while inserted := database.executemany(sql, islice(rows, _BATCH_ROWS)).rowcount:
        progress(inserted)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Values:
    """Pools of values by kind, and the counter that stamps every written row as a rowversion does."""

    def __init__(self, seed: int | str, stamp: int = 0) -> None:
        self.seed = seed
        self.stamp = count(stamp + 1)
        random = Random(f"{seed} values")
        letters = "abcdefghijklmnopqrstuvwxyzäöüßéñøåłč 日本語кириллица\U00020BB7\u0301'\"%_,;|\\"
        moments = [f"20{random.randrange(10, 27)}-{random.randrange(1, 13):02}-{random.randrange(1, 29):02} "
                   f"{random.randrange(24):02}:{random.randrange(60):02}:{random.randrange(60):02}.{random.randrange(1000):03}"
                   for _ in range(3000)]
        self.pools: dict[str, list[Any]] = {
            "int": [random.randrange(4) for _ in range(1000)],
            "bool": [random.randrange(2) for _ in range(1000)],
            "big": [0, 2**63 - 1, -2**63, 2**53 + 1, *(random.getrandbits(62) for _ in range(900))],
            # Most amounts have two places; a third needs all 20, far beyond what a double holds.
            "dec": [(f"{random.randrange(-10**17, 10**17)}.{random.getrandbits(68) % 10**20:020d}",
                     f"{random.randrange(-10**6, 10**6)}.{random.randrange(100):02d}" + "0" * 18,
                     "0." + "0" * 20)[n % 3] for n in range(9973)],
            "date": ["1753-01-01 00:00:00.000"] * 300 + [f"{moment[:10]} 00:00:00.000" for moment in moments]
                    + ["9999-12-31 00:00:00.000", "0001-01-01 00:00:00.000"],
            "time": [*moments, "1753-01-01 00:00:00.000", "2000-02-29 23:59:59.997"],
            "guid": [str(uuid.UUID(int=n and random.getrandbits(128))).upper() for n in range(2001)],
            "code": ["", *(f"{random.choice('ABCDEFGHÄÖ')}{random.randrange(10**6)}" for _ in range(4000))],
            "text": ["", *("".join(random.choices(letters, k=random.randrange(1, 50))) for _ in range(7919))],
            "blob": [None, b"", b"\0", *(random.randbytes(random.choice((50, 800, 3000))) for _ in range(96)),
                     random.randbytes(300_000)],
        }

    def guid(self, text: str) -> str:
        return str(uuid.UUID(int=Random(f"{self.seed} {text}").getrandbits(128))).upper()

    def rows(self, spec: Spec, company: str, first: int, wanted: int) -> Iterator[tuple]:
        """`wanted` rows whose unique columns count from `first`."""
        base = self.guid(spec.sql(company))
        columns = [self._column(kind, n, first, base) for n, (_, kind) in enumerate(spec.typed())]
        return islice(zip(*columns, strict=False), wanted)

    def _column(self, kind: str, position: int, first: int, base: str) -> Iterator[Any]:
        if kind == "stamp":
            return self.stamp
        if kind == "id":
            return count(first)
        if kind == "key":
            return map("K%07d".__mod__, count(first))
        if kind == "newguid":
            return map(f"{base[:24]}%012X".__mod__, count(first))
        pool = self.pools[kind]
        length = min(_PRIMES[position % len(_PRIMES)], len(pool))
        start = (position * 997 + first) % len(pool)
        return cycle((pool + pool)[start:start + length])


def change_sample(path: Path, changes: int, seed: int = 1) -> dict[str, tuple[int, int, int]]:
    """Work in the database as its users would: `{table: (inserted, updated, deleted)}`, together `changes` rows.

    About a third each of inserts, updates and deletes: a tenth in the first company's customers and their companion rows,
    the rest in its G/L entries. The same file, number and seed give the same changes. One transaction; its cost follows
    `changes`. Raises SetupError if the file is no sample.
    """
    if not path.is_file():
        raise SetupError(f"there is no file {path}", hint=f"make it first: skylift sample {path}")
    if changes < 1:
        raise SetupError("the number of changes is at least 1")
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        database.execute("begin immediate")
        [(company,)] = database.execute("select Name from Company order by rowid limit 1")
        [(stamp,)] = database.execute('select lasttimestamp from "$ndo$dbproperty"')
        values = _Values(f"{seed} {stamp}", stamp)
        has_customers = any(database.execute("select 1 from sqlite_master where name = ?", (_CUSTOMER_EXT.sql(company),)))
        pairs = changes // 20 if has_customers else 0     # a customer and its companion row are two
        done = {_GL_ENTRY.sql(company): _change(database, _GL_ENTRY, company, values, changes - 2 * pairs, "Amount", "dec")}
        if pairs:
            for spec, column, kind in ((_CUSTOMER, "Name", "text"), (_CUSTOMER_EXT, f"Deposit %${RENTAL}", "dec")):
                done[spec.sql(company)] = _change(database, spec, company, values, pairs, column, kind)
        database.execute('update "$ndo$dbproperty" set lasttimestamp = ?', (next(values.stamp),))
        database.execute("commit")
    except (sqlite3.Error, ValueError) as error:
        raise SetupError(f"{path} cannot be changed: {error}", hint="only a database made by skylift sample can be") from None
    finally:
        database.close()
    return done


def _change(database: sqlite3.Connection, spec: Spec, company: str, values: _Values, changes: int, column: str,
            kind: str) -> tuple[int, int, int]:
    """Change `changes` rows of one table. A customer and its companion row stay a pair: same keys, same choice."""
    table, [key] = _quote(spec.sql(company)), map(_quote, spec.key)
    numbered = dict(spec.typed())[spec.key[0]] == "id"
    own = "" if numbered else f" where {key} glob 'K[0-9][0-9][0-9][0-9][0-9][0-9][0-9]'"      # others have been added by hand
    [ends] = database.execute(f"select min({key}), max({key}) from {table}{own}")
    low, high = (end if numbered else int(end[1:]) for end in ends) if ends[0] is not None else (1, 0)
    random = Random(f"{values.seed} {company}")
    [(existing,)] = database.execute(f"select count(*) from (select 1 from {table} limit ?)", (changes,))
    wanted = min(changes * 2 // 3, existing)
    picked: dict[int | str, None] = {}
    while len(picked) < wanted:
        near = random.randint(low, high)                   # may have been deleted: take the next that is there
        found = database.execute(f"select {key} from {table} where {key} >= ? order by {key} limit 1",
                                 (near if numbered else f"K{near:07d}",)).fetchone()
        picked[found[0]] = None
    keys = list(picked)
    updated, deleted = keys[: (wanted + 1) // 2], keys[(wanted + 1) // 2:]
    pool = values.pools[kind]
    database.executemany(f'update {table} set {_quote(column)} = ?, timestamp = ? where {key} = ?',
                         ((f"{random.choice(pool)}"[:99], next(values.stamp), key) for key in updated))
    database.executemany(f"delete from {table} where {key} = ?", ((key,) for key in deleted))
    inserted = changes - wanted
    _insert(database, spec, company, values.rows(spec, company, high + 1, inserted))
    return inserted, len(updated), len(deleted)
