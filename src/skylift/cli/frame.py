"""What every command shares: --home, --target and --json, one way to answer, and exit codes that scripts can use."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skylift.connectors import parse_url
from skylift.connectors.sqlserver_url import has_keywords
from skylift.errors import Conflict, NotFound, SetupError, SkyliftError, StateError, Transient
from skylift.settings import Settings, load_settings

if TYPE_CHECKING:
    from skylift.migration import Migration

OK, FAILED, BAD_INPUT, WRONG_STATE, INTERRUPTED = 0, 1, 2, 3, 130
_CODES = ((SetupError, BAD_INPUT), (NotFound, BAD_INPUT), (StateError, WRONG_STATE), (Conflict, WRONG_STATE),
          (Transient, WRONG_STATE))

app = typer.Typer(name="skylift", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Move companies' databases to the cloud and prove that every row arrived.")


class Session:
    """One command's call: its settings, the service (opened when first needed) and the way to answer."""

    def __init__(self, settings: Settings, as_json: bool, *, sets_up: bool = False, target_given: bool = False) -> None:
        self.settings = settings
        self._sets_up = sets_up                            # only what comes before or with it may name another target than the one kept
        self.target_given = target_given
        self.as_json = as_json
        self.progress = Console(stderr=True, highlight=False)
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else 250)

    @cached_property
    def migration(self) -> Migration:
        from skylift.migration import Migration  # opens in a second; --help must not wait for it
        from skylift.store import open_store

        migration = Migration(open_store(self.settings.store), self.settings, actor="cli")
        if not self._sets_up:
            migration.check_target(self.target_given)
        return migration

    def say(self, text: str) -> None:
        """A line for people; on stderr when stdout belongs to a JSON document."""
        (self.progress if self.as_json else self._out).print(Text(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line for people that is not the answer; always on stderr."""
        self.progress.print(Text(text), soft_wrap=True)

    def answer(self, document: Any) -> None:
        """The command's one JSON document; nothing without --json."""
        if self.as_json:
            print(_json(document))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table for people, numbers set to the right; nothing with --json or without rows."""
        rows = [list(row) for row in rows]
        if self.as_json or not rows:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for n, heading in enumerate(headings):
            table.add_column(heading, justify="right" if any(isinstance(row[n], int | float) for row in rows) else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int | float) else str(cell)) for cell in row))
        self._out.print(table)

    def fail(self, error: SkyliftError) -> None:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        if self.as_json:
            print(error_document(error.code, error.message, error.hint))


Home = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Folder of store, keys, settings and embedded target "
                                           "(SKYLIFT_HOME; default ./.skylift).")]
Target = Annotated[str | None, typer.Option("--target", metavar="URL", help="Target database (SKYLIFT_TARGET; default a DuckDB "
                                            "file in the home folder).")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document on stdout; progress goes to stderr.")]


def command(example: str, group: typer.Typer = app, name: str | None = None, *,
            target: bool = False) -> Callable[[Callable[..., int | None]], Any]:
    """Register `function(session, ...)`, which returns its exit code or None for 0; adds the common options to its own.

    `target`: the command works with the target database, so it has --target.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in list(inspect.signature(function).parameters.values())[1:]]
        common = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                  for key, kind, default in (("home", Home, None), *([("target", Target, None)] if target else []), ("json", Json, False))]

        @functools.wraps(function)
        def run(home: Path | None, json: bool, target: str | None = None, **arguments: Any) -> None:
            raise typer.Exit(_call(function, home, target, json, arguments))

        parameters = [*own, *common]
        run.__signature__ = inspect.Signature(parameters)                                # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        group.command(name=name or function.__name__, epilog=f"Example: {example}")(run)
        return function

    return register


def error_document(code: str, message: str, hint: str) -> str:
    """What a command that failed answers under --json."""
    return _json({"error": {"code": code, "message": message, "hint": hint}})


def _json(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode()


def absolute_url(url: str) -> str:
    """`url` with the path of a database file made absolute: whoever opens it later may stand in another folder."""
    if "://" not in url or has_keywords(url):
        return url                                         # no URL of a file; what it may be meant to be, migration says
    parsed = parse_url(url)
    if parsed.host or not parsed.database or parsed.database == ":memory:" or Path(parsed.database).is_absolute():
        return url
    return parsed.set(database=str(Path(parsed.database).absolute())).render_as_string(hide_password=False)


def _call(function: Callable[..., int | None], home: Path | None, target: str | None, as_json: bool,
          arguments: dict[str, Any]) -> int:
    session = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # as Ctrl-C: a run under way in this process is handed over
    try:
        flags = {"home": home, "target": target}
        settings = load_settings(flags)
        session = Session(replace(settings, target=absolute_url(settings.target)), as_json, target_given=target is not None,
                          sets_up=function.__name__ in ("setup", "assess"))
        return function(session, **arguments) or OK
    except SkyliftError as error:
        (session or Session(Settings(), as_json)).fail(error)
        return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
    except KeyboardInterrupt:
        (session or Session(Settings(), as_json)).fail(SkyliftError("interrupted", code="Interrupted"))
        return INTERRUPTED
