"""The command line: parse, call migration, print. One function per command."""

from __future__ import annotations

from skylift.cli import commands, serving, verifying  # noqa: F401  (importing them registers their commands)
from skylift.cli.frame import app


def main() -> None:
    app()
