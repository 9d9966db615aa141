import asyncio
import time

import pytest

from skylift.api.errors import ODataError
from skylift.api.limits import Limits
from skylift.settings import Settings
from tests.api.conftest import open_client


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def limits_of(clock=time.monotonic, **settings):
    return Limits(Settings(**settings), clock)


async def refused(limits, user="a"):
    with pytest.raises(ODataError) as caught:
        async with limits.turn(user):
            pass
    return caught.value.status, caught.value.code, caught.value.headers["Retry-After"]


@pytest.mark.rule("X3")
def test_the_window_slides():
    async def story():
        clock = Clock()
        limits = limits_of(clock, api_requests=3, api_window_s=10)
        for clock.now in (0, 4, 6):
            async with limits.turn("a"):
                pass
        clock.now = 9.5
        assert await refused(limits) == (429, "Application_TooManyRequests", "1")
        clock.now = 6
        assert await refused(limits) == (429, "Application_TooManyRequests", "4")
        async with limits.turn("b"):
            pass
        clock.now = 10
        async with limits.turn("a"):
            pass
        assert await refused(limits) == (429, "Application_TooManyRequests", "4")

    asyncio.run(story())


@pytest.mark.rule("X3")
def test_some_run_some_wait_in_order_and_the_rest_is_refused():
    async def story():
        limits = limits_of(api_running=2, api_queue=2)
        ran, gate = [], asyncio.Event()

        async def request(n):
            async with limits.turn("a"):
                ran.append(n)
                await gate.wait()

        tasks = [asyncio.create_task(request(n)) for n in range(4)]
        await asyncio.sleep(0)
        assert ran == [0, 1] and (await refused(limits))[0] == 429
        async with limits.turn("somebody else"):
            pass
        gate.set()
        await asyncio.gather(*tasks)
        assert ran == [0, 1, 2, 3]
        async with limits.turn("a"):
            pass

    asyncio.run(story())


@pytest.mark.rule("X3")
def test_who_waits_too_long_is_sent_away():
    async def story():
        limits = limits_of(api_running=1, api_wait_s=0.01)
        async with limits.turn("a"):
            assert await refused(limits) == (503, "Internal_TenantUnavailable", "1")
        async with limits.turn("a"):
            pass

    asyncio.run(story())


def test_a_request_that_ends_badly_gives_its_place_back():
    async def story():
        limits = limits_of(api_running=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with limits.turn("a"):
                    raise ZeroDivisionError

    asyncio.run(story())


@pytest.mark.rule("X3")
def test_the_api_counts_each_token_by_itself(tmp_path):
    first = open_client(tmp_path, api_requests=2)
    second = first.as_role("reader")
    assert [first.get().status_code for _ in range(3)] == [200, 200, 429]
    assert first.error("nothing")[:2] == (429, "Application_TooManyRequests")
    assert second.get().status_code == 200
