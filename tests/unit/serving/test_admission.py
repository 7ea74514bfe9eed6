"""Who comes in, who waits, who is turned away; and that work leaves the event loop rounds to hear of others."""

from __future__ import annotations

import asyncio

import pytest

from serving.admission import Admission, Overloaded, Rooms


async def pass_rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("rounds", [0, 7])
def test_rounds_pass_between_two_who_come_in(rounds: int) -> None:
    async def come() -> list[int]:
        room, came, round_ = Admission(8, 8, rounds), [], 0

        async def one() -> None:
            async with room.inside():
                came.append(round_)

        tasks = [asyncio.create_task(one()) for _ in range(3)]
        while len(came) < 3:
            await asyncio.sleep(0)
            round_ += 1
        await asyncio.gather(*tasks)
        assert (room.in_flight, room.waiting) == (0, 0)
        return [after - before for before, after in zip(came, came[1:], strict=False)]

    assert all((gap >= rounds) if rounds else (gap <= 1) for gap in asyncio.run(come()))


def test_the_one_too_many_is_turned_away_and_the_queue_goes_on_without_the_cancelled() -> None:
    async def crowd() -> None:
        room = Admission(1, 2, 3)
        entered = await room.enter()
        given_up, patient = (asyncio.create_task(room.enter()) for _ in range(2))
        await pass_rounds(10)
        with pytest.raises(Overloaded, match="1 requests at work and 2 waiting") as caught:
            await room.enter()
        assert caught.value.retry_after_ms >= 1
        given_up.cancel()
        await pass_rounds(1)
        assert room.waiting == 1
        room.leave(entered)
        room.leave(await patient)
        await pass_rounds(10)
        assert (room.in_flight, room.waiting, room.shed) == (0, 0, 1)

    asyncio.run(crowd())


def test_who_is_cancelled_when_it_is_its_turn_passes_it_on() -> None:
    async def crowd() -> None:
        room = Admission(1, 2)
        entered = await room.enter()
        first, second = (asyncio.create_task(room.enter()) for _ in range(2))
        await pass_rounds(2)
        room.leave(entered)
        first.cancel()
        room.leave(await asyncio.wait_for(second, 5))
        assert (room.in_flight, room.waiting) == (0, 0)

    asyncio.run(crowd())


def test_no_kind_of_request_takes_the_room_of_another() -> None:
    async def fill() -> None:
        rooms = Rooms.of(in_flight_max=1, threads=1, queue_max=0)
        for room in (rooms.lookups, rooms.large, rooms.questions, rooms.pushes, rooms.rest):
            await room.enter()
        with pytest.raises(Overloaded):
            await rooms.questions.enter()
        assert (rooms.waiting, sum(rooms.shed.values())) == (0, 1)
        assert rooms.shed["DescribeService, GetFreshness"] == 1

    asyncio.run(fill())
