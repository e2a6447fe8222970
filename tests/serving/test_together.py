import asyncio

import pytest

from serving.together import MOST, Together


def test_who_waits_at_the_same_time_is_answered_in_one_batch_and_in_order() -> None:
    batches: list[list[int]] = []

    def work(given: list[int]) -> list[str]:
        batches.append(given)
        return [f"answer {g}" for g in given]

    async def late(together: Together[int, str], request: int) -> str:
        await asyncio.sleep(0)  # a round later, as if its socket had been read after the others
        return await together.ask(request)

    async def main() -> list[str]:
        together = Together(work)
        first = await asyncio.gather(together.ask(1), together.ask(2), late(together, 3))
        return [*first, await together.ask(4)]

    assert asyncio.run(main()) == ["answer 1", "answer 2", "answer 3", "answer 4"]
    assert batches == [[1, 2, 3], [4]]


def test_a_failure_reaches_everybody_of_the_batch_and_nobody_after() -> None:
    def work(given: list[int]) -> list[int]:
        if 2 in given:
            raise ValueError("cannot do 2")
        return given

    async def main() -> None:
        together = Together(work)
        failed = await asyncio.gather(together.ask(1), together.ask(2), return_exceptions=True)
        assert [str(e) for e in failed] == ["cannot do 2"] * 2
        assert await together.ask(3) == 3

    asyncio.run(main())


def test_a_stream_of_newcomers_keeps_nobody_waiting() -> None:
    batches: list[int] = []

    def work(given: list[int]) -> list[int]:
        batches.append(len(given))
        return given

    async def main() -> None:
        together = Together(work)
        tasks = [asyncio.ensure_future(together.ask(0))]
        while not tasks[0].done():  # somebody new in every round
            tasks.append(asyncio.ensure_future(together.ask(len(tasks))))
            await asyncio.sleep(0)
            assert len(tasks) < 10 * MOST
        assert await asyncio.gather(*tasks) == list(range(len(tasks)))

    asyncio.run(main())
    assert max(batches) == MOST


def test_too_few_answers_are_an_error_for_everybody() -> None:
    async def main() -> None:
        together: Together[int, int] = Together(lambda given: given[1:])
        failed = await asyncio.gather(together.ask(1), together.ask(2), return_exceptions=True)
        assert [str(e) for e in failed] == ["1 answers to 2 requests"] * 2

    asyncio.run(main())


def test_who_hangs_up_is_not_worked_for() -> None:
    batches: list[list[int]] = []

    def work(given: list[int]) -> list[int]:
        batches.append(given)
        return given

    async def main() -> None:
        together = Together(work)
        gone = asyncio.ensure_future(together.ask(1))
        stays = asyncio.ensure_future(together.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 2
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(main())
    assert batches == [[2]]
