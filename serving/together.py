"""Requests that wait at the same time, worked on as one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

ROUNDS = 5
"""Rounds of the event loop without a newcomer before the batch is closed: a request that lies in its socket is here
after four."""

MOST = 32
"""Requests in a batch. More are not much cheaper together, and the first of them has waited long enough."""


class Together(Generic[Q, A]):
    """Joins requests that wait at the same time.

    While one is answered, others arrive. Most of what an answer costs is the number of array operations, not their
    length, so joined requests cost a fraction of what they cost one by one. Nobody waits for company: who is there when
    the loop has gone round is taken, and a lone request is answered at once. (BentoML's own batching waits by the clock
    and works in a thread; here the work holds the loop anyway.)

    Args:
        work: answers a list of requests, in order. It must not be awaited: it runs in the event loop.
    """

    def __init__(self, work: Callable[[list[Q]], Sequence[A]]) -> None:
        self._work = work
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._rounds = 0

    async def ask(self, request: Q) -> A:
        """The answer to a request.

        Raises:
            Exception: what `work` raised for the batch the request was in.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((request, future))
        self._rounds = ROUNDS
        if len(self._waiting) == 1:
            loop.call_soon(self._look, loop)
        return await future

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds -= 1
        if self._rounds > 0 and len(self._waiting) < MOST:
            loop.call_soon(self._look, loop)
            return
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if self._waiting:
            loop.call_soon(self._look, loop)
        batch = [(q, f) for q, f in batch if not f.done()]  # who hung up is not answered
        try:
            answers = self._work([q for q, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
