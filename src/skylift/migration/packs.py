"""Which upgrade packs a data upgrade goes through: those that are named, where they are for this product and source version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skylift.errors import SetupError
from skylift.migration.service import Service
from skylift.products.registry import find_product
from skylift.runs import MigrationState
from skylift.upgrades.pack import Pack, find_packs


def names_of(service: Service, row: Mapping[str, Any], packs: Sequence[str] | None) -> list[str]:
    """`packs`, or where there are none given those of the upgrade that has failed, else those of the settings.

    Raises SetupError for one that is given, and for another product or source version.
    """
    if packs is None:
        return row["packs"].splitlines() if row["state"] is MigrationState.UPGRADE_FAILED else service.settings.packs.split()
    for pack in find_packs(packs, service.settings.home):
        if why := pack.why_not(row["product_id"], row["source_version"]):
            raise SetupError(f"upgrade {why}", code="PackProduct",
                             hint="leave it out; the keys `product`, `from` and `to` of a pack's pack.toml say what it is for")
    return list(packs)


def find(service: Service, row: Mapping[str, Any], names: Iterable[str]) -> tuple[list[Pack], list[str]]:
    """Of the named packs those that are for this product and source version, and why the others are not."""
    found = find_packs(names, service.settings.home)
    why = {pack.name: pack.why_not(row["product_id"], row["source_version"]) for pack in found}
    return [pack for pack in found if not why[pack.name]], [text for text in why.values() if text]


def named_packs(service: Service, row: Mapping[str, Any]) -> list[Pack]:
    """The packs of the settings that make an upgrade due which the product alone does not need."""
    return find(service, row, service.settings.packs.split())[0] if find_product(row["product_id"]).optional_upgrade else []


def refuse_paths(service: Service, packs: Iterable[str]) -> None:
    """Raises SetupError for a pack that is not one of this machine's by name: its Python would run with skylift's rights."""
    for name in packs:
        if not re.fullmatch(r"\w[\w .-]*", name) and name not in service.settings.packs.split():
            raise SetupError(f"'{name}' is not the name of an upgrade pack", code="Pack",
                             hint="name a built-in one, or a folder that stands under `packs` in the service's home folder")
