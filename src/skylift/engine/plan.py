"""Which tables are copied where: the source's catalogue x table mappings -> copy tasks. Source: behaviour.md §1, §2.9, §5.1, §5.11."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from skylift.model import CopyTask, Table, TableMapping
from skylift.products import Catalogue
from skylift.products.naming import refuse_collisions, same_name, split_name, sql_name, target_name
from skylift.runs import TableMappingType


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a mapping asks for and the run cannot do; becomes a Warning."""

    company: str
    table_name: str
    why: str
    code: str


@dataclass(frozen=True, slots=True)
class Plan:
    tasks: list[CopyTask]
    left_out: list[LeftOut]


def plan(catalogue: Catalogue, mappings: Sequence[TableMapping], source_tables: Callable[[], list[Table]], max_name_bytes: int) -> Plan:
    """What `lay_out` makes. Raises SetupError if two sources would go to one target table."""
    whole = lay_out(catalogue, mappings, source_tables, max_name_bytes)
    refuse_collisions((task.target, task.table.path) for task in whole.tasks)
    return whole


def lay_out(catalogue: Catalogue, mappings: Sequence[TableMapping], source_tables: Callable[[], list[Table]], max_name_bytes: int) -> Plan:
    """The copy tasks of every company of `catalogue` and of what they share, in catalogue order.

    A mapping of type Table sends its source table to another target table instead of its own; `source_tables` lists the
    whole source, asked only where a mapping names a table that takes no part by itself.
    """
    wanted: dict[tuple[str, bool], list[TableMapping]] = {}
    left_out: list[LeftOut] = []
    companies = [company.name for company in catalogue.companies]
    for mapping in mappings:
        if mapping.target_table_type is TableMappingType.TABLE:
            wanted.setdefault((same_name(mapping.source_table_name), mapping.per_company), []).append(mapping)
        else:
            left_out += [LeftOut(company, f"{mapped_name(mapping)}$ext", "which fields go to a table extension only the app's own metadata "
                                 f"says, which a source does not hold; '{mapping.source_table_name}' is copied with all its fields, and an "
                                 "upgrade pack can move some (docs/upgrade.md)", "TableExtension")
                         for company in (companies if mapping.per_company else [""])]
    own = {(table.company, same_name(table.table_name)) for table in catalogue.tables}
    found = [(table.company, table.table_name, table.table) for table in catalogue.tables]
    if any((company, name) not in own for name, per_company in wanted for company in (companies if per_company else [""])):
        planned = {table.table.path for table in catalogue.tables}
        found += [row for row in _elsewhere(companies, source_tables()) if row[2].path not in planned
                  and (same_name(row[1]), bool(row[0])) in wanted]
    tasks = []
    seen: set[tuple[str, str]] = set()
    for company, name, table in found:
        key = (same_name(name), bool(company))
        seen.add((company, key[0]))
        names = [mapped_name(mapping) for mapping in wanted[key]] if key in wanted else [name]
        tasks += [CopyTask(company, n, table, target_name(company, n, max_name_bytes)) for n in names]
    left_out += [LeftOut(company, mapped_name(mapping), f"the source has no table '{mapping.source_table_name}'", "50004")
                 for (name, per_company), those in wanted.items() for mapping in those
                 for company in (companies if per_company else [""]) if (company, name) not in seen]
    return Plan(tasks, left_out)


def mapped_name(mapping: TableMapping) -> str:
    """The name without company prefix of the table that a mapping fills."""
    return sql_name(mapping.table_name) + (f"${mapping.app_id}" if mapping.app_id.int else "")


def of_companies(whole: Plan, companies: Iterable[str]) -> Plan:
    """The part of a plan that is about these companies and about what all companies share."""
    chosen = {"", *companies}
    return replace(whole, tasks=[task for task in whole.tasks if task.company in chosen],
                   left_out=[item for item in whole.left_out if item.company in chosen])


def _elsewhere(companies: Iterable[str], tables: Iterable[Table]) -> Iterator[tuple[str, str, Table]]:
    """Every table of the source as (company, name without prefix, table), whether it takes part or not."""
    keys = {same_name(company): company for company in companies}
    for table in tables:
        name = split_name(table.name, keys)
        if name is not None:
            yield name.company, name.table_name, table
