"""The command line: parse, call migration, print. One function per command."""

from __future__ import annotations

import sys
from typing import Any

from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

# importing them registers their commands
from skylift.cli import (  # noqa: F401
    assessing,
    caring,
    commands,
    ending,
    granting,
    serving,
    tables,
    tokens,
    upgrading,
    validating,
    verifying,
    webhooks,
)
from skylift.cli.frame import BAD_INPUT, app, error_document


def main() -> None:
    """Exit with the command's code; what a command line is refused for is a JSON document too where one was asked for."""
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        refused: Any = error
        rich_format_error(refused)
        if "--json" in sys.argv:
            print(error_document("Usage", refused.format_message(), "see --help"))
        sys.exit(BAD_INPUT)
