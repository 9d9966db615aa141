from enum import StrEnum

import pytest

from skylift.errors import StateError
from skylift.runs import ALLOWED, MIGRATION_TRANSITIONS, RUN_TRANSITIONS, MigrationState, RunStatus, advance


@pytest.mark.parametrize("table", [RUN_TRANSITIONS, MIGRATION_TRANSITIONS])
def test_every_pair_of_the_table_moves_and_every_other_is_refused_with_what_is_possible(table):
    events = {event for _, event in table}
    statuses: type[StrEnum] = type(next(iter(table))[0])
    for status in statuses:
        for event in events:
            if (status, event) in table:
                assert advance(status, event) is table[status, event]
            else:
                with pytest.raises(StateError) as raised:
                    advance(status, event)
                possible = sorted(e for s, e in table if s is status)
                assert raised.value.hint == f"possible now: {', '.join(possible) or 'nothing'}"


def test_every_state_of_a_migration_can_be_reached_and_left():
    reached = {MigrationState.NOT_SET_UP}
    while more := {to for (state, _), to in MIGRATION_TRANSITIONS.items() if state in reached} - reached:
        reached |= more

    assert reached == set(MigrationState)
    assert {state for (state, _), to in MIGRATION_TRANSITIONS.items() if to is not state} == set(MigrationState)


def test_an_ended_run_never_begins_again():
    ended = (RunStatus.COMPLETED, RunStatus.FAILED)

    # what failed is accepted as it is; packs are named for a product that needs no upgrade
    assert {event for status, event in RUN_TRANSITIONS if status in ended} == {"unblock", "await_upgrade"}
    assert RUN_TRANSITIONS[RunStatus.COMPLETED, "await_upgrade"] is RunStatus.UPGRADE_PENDING
    assert RUN_TRANSITIONS[RunStatus.FAILED, "unblock"] is RunStatus.UPGRADE_PENDING


def test_no_verb_but_a_mark_for_the_next_run_is_permitted_while_rows_are_moved_or_upgraded():
    during_run = {verb for verb, states in ALLOWED.items() if MigrationState.REPLICATING in states}

    assert during_run == {"change_company", "change_mappings"}
    assert not any(MigrationState.UPGRADING in states for states in ALLOWED.values())
    assert not any(MigrationState.NOT_SET_UP in states for states in ALLOWED.values())
