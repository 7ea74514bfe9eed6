"""Who comes in, who waits, who is turned away; and that work leaves the event loop rounds to hear of others."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.admission import Admission, Overloaded, Rooms


async def pass_rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_who_comes_alone_comes_in_at_once() -> None:
    async def come() -> None:
        room = Admission(8, 8, 7)
        for _ in range(3):
            async with room.inside():
                assert room.waiting == 0
            await pass_rounds(10)

    asyncio.run(come())


def test_those_who_come_while_one_is_served_come_in_together_once_nobody_else_comes() -> None:
    async def come() -> None:
        room, came = Admission(8, 8, 7), list[int]()

        async def one() -> None:
            async with room.inside():
                came.append(room.in_flight)
                await pass_rounds(2)

        tasks = [asyncio.create_task(one())]
        for _ in range(3):
            await pass_rounds(5)
            tasks.append(asyncio.create_task(one()))
        await pass_rounds(5)
        assert came == [1]
        assert room.waiting == 3
        await pass_rounds(5)
        assert came == [1, 3, 3, 3]
        await asyncio.gather(*tasks)

    asyncio.run(come())


def test_after_company_the_next_waits_for_those_who_left() -> None:
    async def come() -> None:
        room = Admission(8, 8, 7)
        group = [asyncio.create_task(room.enter()) for _ in range(3)]
        await pass_rounds(12)
        entered = [await each for each in group]
        assert room.in_flight == 3
        room.leave(entered[0])
        late = asyncio.create_task(room.enter())
        await pass_rounds(5)
        room.leave(entered[1])
        room.leave(entered[2])
        await pass_rounds(5)
        assert (room.in_flight, room.waiting) == (0, 1)
        await pass_rounds(5)
        assert late.done()
        room.leave(await late)
        await pass_rounds(10)
        assert (room.in_flight, room.waiting) == (0, 0)

    asyncio.run(come())


def test_those_who_fill_the_queue_come_in_without_waiting_for_others() -> None:
    async def come() -> None:
        room = Admission(2, 1, 1_000)
        group = [asyncio.create_task(room.enter()) for _ in range(2)]
        await pass_rounds(5)
        assert (room.in_flight, room.waiting) == (1, 1)  # the first came alone
        group.append(asyncio.create_task(room.enter()))
        await pass_rounds(3)
        assert (room.in_flight, room.waiting) == (2, 1)
        for task in group[:2]:
            room.leave(await task)
        group.append(asyncio.create_task(room.enter()))
        await pass_rounds(5)
        assert (room.in_flight, room.waiting) == (0, 2)
        group.append(asyncio.create_task(room.enter()))
        await pass_rounds(3)
        assert (room.in_flight, room.waiting) == (2, 1)
        for task in group[2:4]:
            room.leave(await task)
        group[4].cancel()

    asyncio.run(come())


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


def test_work_that_cannot_be_broken_off_keeps_the_place_of_who_gave_up_until_it_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = threading.Event()

    def work() -> None:
        done.wait(60)
        raise RuntimeError("the disk is full")

    async def crowd() -> None:
        room = Admission(1, 1)

        async def one() -> None:
            async with room.inside() as place:
                await place.finish(work)

        first = asyncio.create_task(one())
        await pass_rounds(3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(room.enter())
        await pass_rounds(3)
        assert (room.in_flight, room.waiting) == (1, 1)
        done.set()
        room.leave(await asyncio.wait_for(second, 60))
        assert (room.in_flight, room.waiting) == (0, 0)

    asyncio.run(crowd())
    assert "a caller who had gone failed: the disk is full" in caplog.text


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
