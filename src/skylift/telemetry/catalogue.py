"""The telemetry events that the vendor documents: when each is told, with which dimensions, or why skylift does not tell it.

Events of the application carry the prefix AL on the wire, so that queries which exist already find them. Source: behaviour.md §10.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Documented:
    id: str
    when: str
    dimensions: tuple[str, ...] = ()
    why_not: str = ""             # why skylift does not tell it; '' = it does


def _each(ids: str, when: str, why_not: str) -> list[Documented]:
    return [Documented(id, when, (), why_not) for id in ids.split()]


_RUN = ("ReplicationType", "SourceProduct")
_SIZES = ("NumberOfCompanies", "TotalMigrationSize", "TotalOnPremSize", "Product")
_UPGRADE = ("applicationFamily", "environmentVersion", "totalTime")

DOCUMENTED: dict[str, Documented] = {event.id: event for event in (
    Documented("AL0000K0J", "a run is asked for", _RUN),
    Documented("AL0000K0H", "a run has ended without failed tables", _RUN),
    Documented("AL0000K0I", "a run has failed, was cancelled, or has ended with failed tables; of whatever type",
               (*_RUN, "HasFailures", "NumberOfFailedTables", "Details")),
    Documented("AL0000K0K", "the data upgrade is asked for", ("SourceProduct",)),
    Documented("AL0000IGC", "the migration is disabled, paused, abandoned or completed",
               ("DisabledReason", "DisabledReasonDescription", "SourceProduct")),
    Documented("AL0000FXC", "companion rows of a company are to be repaired: its upgrade has begun with the pack `companions`"),
    Documented("AL0000FJ1", "companion rows of a company are being repaired: a step of that pack begins"),
    Documented("AL0000FJ4", "companion rows of a company are repaired: the step has ended"),
    Documented("LC0175", "the coordinator begins the data upgrade", ("applicationFamily", "environmentVersion")),
    Documented("LC0176", "the data upgrade is done", _UPGRADE),
    Documented("LC0177", "the data upgrade has failed for some company", (*_UPGRADE, "failureReason")),
    *_each("LC0178 LC0179", "recovery after a failed upgrade",
           "nothing is recovered: a company's upgrade is one transaction of the target, and one that fails has not happened"),
    Documented("AL0000EUR", "the set-up is completed: default mappings are there, companies are to be created",
               ("TotalNumberOfOnPremCompanies", *_SIZES)),
    Documented("AL0000JMR", "the migration is completed", (*_SIZES, "MigrationDateTime")),
    *_each("AL0000JMQ", "tenant migrated", "AL0000JMR says the same"),
    Documented("AL0000JML", "the API is used to set up"),
    Documented("AL0000JMM", "the API is used to complete the set-up"),
    Documented("AL0000JMN", "the API is used to start a run"),
    Documented("AL0000JMO", "the API is used to start the data upgrade"),
    Documented("AL0000JMP", "the API is used to disable the migration"),
    Documented("AL0000JV6", "the API is used to complete the migration"),
    Documented("AL0000MRI", "a company is included", ("Company Name", "Display Name", "Estimated size")),
    Documented("AL0000MRJ", "tables are included or left out", ("TablesModified", "NewValue")),
    Documented("AL0000MRK", "tables are set to be preserved or replaced", ("TablesModified", "NewValue")),
    *_each("AL0000MRL AL0000MRM AL0000MRN", "consent of a delegated administrator granted, revoked",
           "there are no delegated administrators: who may do what follows from the role of their token"),
    Documented("AL0000MRO", "a run leaves out a table that the source does not have, such as one that a mapping names",
               ("CompanyName", "TableName")),
    *_each("AL0000MRP", "a mapping's target table is unknown", "such a mapping is refused when it is written"),
    *_each("AL0000EUX AL0000EUY AL0000EUZ AL0000EV0 AL0000EV1", "message of the service received, processed, parsed, cleaned up",
           "there are no such messages: coordinator and engine are one process, which writes to the store"),
    Documented("AL0000EV4", "an integration runtime is to be registered", ("Product",)),
    Documented("AL0000EV5", "an integration runtime is registered", ("RuntimeName",)),
    Documented("AL0000FXD", "a company waits for its upgrade", ("CompanyName",)),
    *_each("AL0000IGA AL0000IGB", "upgrade gate",
           "what stands in the way of an upgrade is the answer to the request for it, and changes nothing"),
    *_each("AL0000IGF AL0000IGG AL0000IGH AL0000IGI", "roll-ups of company statuses",
           "nothing is rolled up: what a run's tables and companies say is counted when it is asked for"),
    Documented("AL0000CA0", "the upgrade of what all companies share begins"),
    Documented("AL0000CA1", "the upgrade of what all companies share has failed"),
    Documented("AL0000CA2", "the upgrade of what all companies share is done"),
    Documented("AL00007EB", "the upgrade of a company begins", ("CompanyName",)),
    Documented("AL00007KD", "the upgrade of a company has failed", ("CompanyName",)),
    Documented("AL00007EC", "the upgrade of a company is done", ("CompanyName",)),
    *_each("AL0000EV2 AL0000EV3", "classic upgrade", "the events above tell begin, failure and end"),
    *_each("AL0000PY5 AL0000PY6 AL0000PY7 AL0000PY8 AL0000PY9", "record links are moved from their buffer",
           "moving them is left to who works in the target (docs/parity.md)"),
    Documented("AL0000SEU", "after a run nothing could be validated: the suites cannot be read"),
    Documented("AL0000SEV", "a validation is asked for, by somebody or after a run"),
    *_each("AL0000JMG AL0000JMH AL0000JMS AL0000JMT AL0000JMU AL0000JMV AL0000JMX AL0000JMY AL0000JV4 AL0000JV5 SmbMig-001 "
           "SmbMig-002 SmbMig-003 SmbMig-004 SmbMig-005", "usage and uptake of the vendor's pages, data-lake clean-up",
           "nobody counts how skylift is used, and there is no replication to a data lake"),
)}


def table() -> str:
    """DOCUMENTED for docs/telemetry.md."""
    lines = ["| id | when | dimensions | told by skylift |", "|---|---|---|---|"]
    lines += [f"| {event.id} | {event.when} | {', '.join(event.dimensions) or '–'} | {f'no: {event.why_not}' if event.why_not else 'yes'} |"
              for event in DOCUMENTED.values()]
    return "\n".join(lines)
