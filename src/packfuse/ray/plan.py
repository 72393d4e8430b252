"""How many replicas answer how much: a simulation from times of steps and speeds of links.

It needs no cluster, and no Ray. A replica reads one prompt between two steps, or several that are
short together, as the scheduler does. In a step, the members in the replica's process compute in
turn, and those on other nodes meanwhile.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from packfuse.settings import Settings

_BITS = 32
"""Bits of a log-probability that is sent."""
_PLACES = 128
"""Most places of a prompt whose distributions are sent, for its weights."""


class PlannedMember(Settings):
    """How fast a member is, and where."""

    name: str
    """What tables call it."""
    step: NonNegativeFloat
    """Time of a step, ms, with no row."""
    row: NonNegativeFloat = 0.0
    """What each row adds to a step, ms."""
    prompt: NonNegativeFloat = 0.0
    """Time of reading a token of a prompt, ms."""
    away: bool = False
    """Whether it is on a node of its own."""
    columns: NonNegativeFloat = 0.0
    """Log-probabilities that are sent for a row, if it is away."""
    price: NonNegativeFloat = 0.0
    """Price of what it runs on, an hour."""


class Plan(Settings):
    """What is simulated."""

    members: list[PlannedMember] = Field(min_length=1)
    """The members of each replica."""
    rows: PositiveInt = 16
    """Most answers that a replica decodes at the same time."""
    fuse: NonNegativeFloat = 0.0
    """Time of fusing a row, ms."""
    hop: NonNegativeFloat = 0.5
    """Time that a read of a member on another node takes besides its step, ms."""
    link: PositiveFloat = 10.0
    """Speed of the links between nodes, Gbit/s."""
    prompt_tokens: PositiveInt = 200
    """Tokens of a prompt."""
    answer_tokens: int = Field(default=200, ge=2)
    """Tokens of an answer."""
    read_tokens: PositiveInt = 64
    """Most tokens of several prompts that are read between two steps."""
    requests: PositiveInt = 2048
    """Number of requests."""
    rate: PositiveFloat | None = None
    """Requests a second, at random times (Poisson); none: all are there at the beginning."""

    @property
    def price(self) -> float:
        """Price of a replica, an hour."""
        return sum(member.price for member in self.members)

    def step_ms(self, rows: int) -> float:
        """Time of a step of so many rows, ms."""
        here, away = 0.0, [0.0]
        for member in self.members:
            own = member.step + rows * member.row
            if member.away:
                away.append(self.hop + own + self._sent_ms(member, rows))
            else:
                here += own
        return rows * self.fuse + max(here, *away)

    def prompt_ms(self) -> float:
        """Time of reading a prompt, ms: members read it in turn, as its weights are fitted."""
        places = min(self.prompt_tokens, _PLACES)
        return sum(
            member.step
            + self.prompt_tokens * member.prompt
            + (self.hop + self._sent_ms(member, places) if member.away else 0.0)
            for member in self.members
        )

    def _sent_ms(self, member: PlannedMember, rows: int) -> float:
        return rows * member.columns * _BITS / (self.link * 1e6)


class Outcome(BaseModel):
    """What so many replicas do.

    Attributes:
        replicas: Number of replicas.
        tokens_per_second: Tokens of answers a second.
        answers_per_second: Answers a second.
        median_seconds: Median time from a request to its answer; for a batch, from the beginning.
        p95_seconds: The same for the 95th of 100.
        efficiency: Tokens a second over as many times those of one replica.
        price_per_million: Price of a million tokens of answers.
    """

    replicas: int
    tokens_per_second: float
    answers_per_second: float
    median_seconds: float
    p95_seconds: float
    efficiency: float
    price_per_million: float


def outcomes(plan: Plan, replicas: Sequence[int]) -> list[Outcome]:
    """What each number of replicas does with the same requests."""
    single = _outcome(plan, 1, 1.0)
    return [_outcome(plan, count, single.tokens_per_second) for count in replicas]


def _outcome(plan: Plan, replicas: int, single: float) -> Outcome:
    ended = sorted(simulate(plan, replicas))
    seconds = max(end for _, end in ended)
    times = sorted(end - arrived for arrived, end in ended)
    rate = len(ended) * plan.answer_tokens / seconds
    return Outcome(
        replicas=replicas,
        tokens_per_second=rate,
        answers_per_second=len(ended) / seconds,
        median_seconds=statistics.median(times),
        p95_seconds=times[min(len(times) - 1, round(0.95 * len(times)))],
        efficiency=rate / (single * replicas) if replicas > 1 else 1.0,
        price_per_million=plan.price * replicas / 3600 / rate * 1e6,
    )


def simulate(plan: Plan, replicas: int) -> Iterator[tuple[float, float]]:
    """Run all requests. A request goes to the first replica that has a place for it.

    Yields:
        For each request when it arrived and when its answer was complete, seconds.
    """
    waiting = deque(_arrivals(plan))
    rows: list[list[tuple[int, float]]] = [[] for _ in range(replicas)]
    clocks = [(0.0, replica) for replica in range(replicas)]
    while clocks:
        now, replica = heapq.heappop(clocks)
        own = rows[replica]
        if not own and waiting and waiting[0] > now:
            now = waiting[0]
        for _ in range(max(1, plan.read_tokens // plan.prompt_tokens)):
            if len(own) < plan.rows and waiting and waiting[0] <= now:
                arrived = waiting.popleft()
                now += plan.prompt_ms() / 1000  # which gives the first token
                own.append((plan.answer_tokens - 1, arrived))
        if not own:
            continue  # nothing will come any more
        now += plan.step_ms(len(own)) / 1000
        for left, arrived in own:
            if left <= 1:
                yield arrived, now
        rows[replica] = [(left - 1, arrived) for left, arrived in own if left > 1]
        heapq.heappush(clocks, (now, replica))


def _arrivals(plan: Plan) -> Iterator[float]:
    draw, now = random.Random(0), 0.0  # noqa: S311 - times of requests, no secret
    for _ in range(plan.requests):
        if plan.rate is not None:
            now += draw.expovariate(plan.rate)
        yield now
