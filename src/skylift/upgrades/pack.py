"""An upgrade pack: a folder with `pack.toml` and its steps, each a SQL file or a Python function. docs/upgrade.md is its reference."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from skylift.errors import SetupError
from skylift.model import Table

BUILT_IN = Path(__file__).parent / "packs"
DIALECTS = ("duckdb", "postgresql", "mssql")
COMPANY, SHARED = "company", "shared"

_STEP_KEYS = {"id", "sql", "python", "scope"}
_PACK_KEYS = {"name", "version", "product", "from", "to", "step", "options"}
# What a `;` or a `{{` does not count in: texts, quoted names, comments, PostgreSQL's dollar quotes.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1|\{\{(.+?)\}\}|;|.""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """`sql`: the text for each dialect, '' = for every one; `function`: what is called instead."""

    id: str
    scope: str                                   # COMPANY or SHARED: once a company, or once for what all companies share
    checksum: str                                # SHA-256 of all that decides what the step does
    sql: Mapping[str, str] = field(default_factory=dict)
    function: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    name: str
    version: str
    products: tuple[str, ...]                    # ids of the source products that it is for; none = any
    since: str                                   # source versions that it is for: since <= version < until, '' = unbounded
    until: str
    steps: tuple[Step, ...]
    options: Mapping[str, Any]

    def why_not(self, product: str, version: str) -> str:
        """Why it is not for this product or source version; '' if it is."""
        if self.products and product not in self.products:
            return f"pack {self.name} is for {' and '.join(self.products)}, not for {product}"
        if (self.since and _order(version) < _order(self.since)) or (self.until and _order(version) >= _order(self.until)):
            bounds = [f"{word} {bound}" for word, bound in (("from", self.since), ("before", self.until)) if bound]
            return f"pack {self.name} is for sources {' and '.join(bounds)}, and this one is {version or 'of no version'}"
        return ""


def find_packs(names: Iterable[str], home: Path) -> list[Pack]:
    """The packs of these names: built-in ones, or folders (relative ones under `home`, or under `packs` there).

    Raises SetupError naming what is wrong with one.
    """
    packs = [load_pack(_folder(name, home)) for name in names]
    doubled = {pack.name for pack in packs if sum(other.name == pack.name for other in packs) > 1}
    if doubled:
        raise SetupError(f"more than one upgrade pack is called '{min(doubled)}'", hint="give each a name of its own", code="Pack")
    return packs


def _folder(name: str, home: Path) -> Path:
    built_in, own = BUILT_IN / name.replace("-", "_"), home / "packs" / name
    if re.fullmatch(r"[a-z-]+", name) and (built_in / "pack.toml").exists():
        return built_in
    return home / name if (home / name / "pack.toml").exists() else own


def load_pack(folder: Path) -> Pack:
    """Raises SetupError naming the file and what is wrong with it."""
    manifest = folder / "pack.toml"
    try:
        text = manifest.read_text("utf-8")
        content = tomllib.loads(text)
    except FileNotFoundError:
        built_in = ", ".join(sorted(path.parent.name.replace("_", "-") for path in BUILT_IN.glob("*/pack.toml")))
        raise _wrong(manifest, "is not there", f"name a built-in pack ({built_in}), or a folder with a pack.toml: by its path, "
                     "or by its name where it stands under `packs` in the home folder") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _wrong(manifest, f"cannot be read: {error}") from None
    _check_keys(manifest, content, _PACK_KEYS, ("name", "version"))
    for key in ("name", "version", "from", "to"):
        if not isinstance(content.get(key, ""), str):
            raise _wrong(manifest, f"'{key}' is not text", f'write {key} = "..."')
    products = [content["product"]] if isinstance(content.get("product"), str) else content.get("product", [])
    if not isinstance(products, list) or not all(isinstance(product, str) for product in products):
        raise _wrong(manifest, "'product' is neither text nor a list of texts", 'write product = ["...", "..."]')
    entries = content.get("step") or []
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(manifest, "has no [[step]]")
    options = content.get("options", {})
    steps = tuple(_step(manifest, entry, repr(sorted(options.items()))) for entry in entries)
    if len({step.id for step in steps}) < len(steps):
        raise _wrong(manifest, "has two steps of one id")
    return Pack(content["name"], content["version"], tuple(filter(None, products)), content.get("from", ""), content.get("to", ""),
                steps, options)


def _step(manifest: Path, entry: Mapping[str, Any], options: str) -> Step:
    _check_keys(manifest, entry, _STEP_KEYS, ("id",))
    id, scope = str(entry["id"]), entry.get("scope", COMPANY)
    if scope not in (COMPANY, SHARED):
        raise _wrong(manifest, f"step {id}: the scope '{scope}' is not known", f"possible are {COMPANY} and {SHARED}")
    if ("sql" in entry) == ("python" in entry):
        raise _wrong(manifest, f"step {id} needs either sql or python")
    seen = hashlib.sha256(repr((scope, options)).encode())
    if "python" in entry:
        name, _, function = str(entry["python"]).partition(":")
        path = manifest.parent / name
        seen.update(_read(path) + function.encode())
        return Step(id, scope, seen.hexdigest(), function=_function(path, function))
    path = manifest.parent / str(entry["sql"])
    files = {"": path, **{dialect: path.with_suffix(f".{dialect}{path.suffix}") for dialect in DIALECTS}}
    sql = {dialect: _read(file).decode() for dialect, file in files.items() if file.exists()}
    if not sql:
        raise _wrong(path, "is not there", f"write it, or one for each dialect: {', '.join(files[d].name for d in DIALECTS)}")
    for dialect, text in sorted(sql.items()):
        seen.update(repr((dialect, text)).encode())
    return Step(id, scope, seen.hexdigest(), sql)


def _function(path: Path, name: str) -> Callable[[Any], None]:
    spec = importlib.util.spec_from_file_location(f"_skylift_pack_{path.stem}_{abs(hash(path))}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:                             # whatever the pack's author has written
        raise _wrong(path, f"cannot be loaded: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise _wrong(path, f"has no function '{name}'", "write python = \"file.py:function\"")
    return function


def statements(sql: str, table: Callable[[str], str]) -> list[str]:
    """The statements of a file, separated by `;`, each `{{Table}}` in them replaced by `table(name)`. Comments go."""
    found, text = [], ""
    for token in _TOKEN.finditer(sql):
        if token[0] == ";":
            found.append(text.strip())
            text = ""
        elif token[2]:
            text += table(token[2].strip())
        elif not token[0].startswith(("--", "/*")):
            text += token[0]
    return [statement for statement in [*found, text.strip()] if statement]


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content.decode()
        return content
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, f"cannot be read: {error}") from None


def _check_keys(manifest: Path, entry: Mapping[str, Any], known: set[str], needed: Iterable[str]) -> None:
    if unknown := sorted(entry.keys() - known):
        raise _wrong(manifest, f"'{unknown[0]}' is not known", f"known are {', '.join(sorted(known))}")
    for key in needed:
        if not entry.get(key):
            raise _wrong(manifest, f"has no '{key}'")


def _wrong(path: Path, what: str, hint: str = "docs/upgrade.md says what a pack is made of") -> SetupError:
    return SetupError(f"upgrade pack: {path} {what}", hint=hint, code="Pack")


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def text_columns(table: Table) -> list[str]:
    return [field.name for field in table.schema if pa.types.is_string(field.type)]
