import pytest

from skylift.store import leases, open_store


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    yield store
    store.close()


def holder(store):
    with store.write() as connection:
        return leases.held_by(connection, "work")


def test_one_holder_at_a_time_and_it_may_renew(store):
    assert leases.acquire(store, "work", "a:1:x", 60)
    assert not leases.acquire(store, "work", "b:2:y", 60)
    assert leases.acquire(store, "work", "a:1:x", 60)
    assert leases.acquire(store, "other work", "b:2:y", 60)
    assert holder(store) == "a:1:x"


def test_a_holder_that_falls_silent_loses_it(store):
    assert leases.acquire(store, "work", "a:1:x", -1)
    assert holder(store) == ""

    assert leases.acquire(store, "work", "b:2:y", 60)
    assert not leases.acquire(store, "work", "a:1:x", 60)


def test_only_the_holder_can_release_it(store):
    leases.acquire(store, "work", "a:1:x", 60)

    leases.release(store, "work", "b:2:y")
    assert holder(store) == "a:1:x"
    leases.release(store, "work", "a:1:x")
    assert leases.acquire(store, "work", "b:2:y", 60)


def test_the_lease_of_a_dead_process_is_taken_from_it_and_from_no_other(store):
    leases.acquire(store, "work", "a_:12:x", 60)

    for process in ("a_:1", "aX:12:", "%"):
        leases.release_process(store, "work", f"{process}:" if process == "a_:1" else process)
        assert holder(store) == "a_:12:x"
    leases.release_process(store, "work", "a_:12:")
    assert holder(store) == ""
