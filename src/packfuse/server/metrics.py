"""Metrics of a server in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from packfuse.pack import Pack
from packfuse.server.packs import Served
from packfuse.tools.reply import Reply

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, served: Served) -> None:
        """Count from zero."""
        self.registry = CollectorRegistry()
        self._served = served

        def labeled(kind: Any, name: str, text: str, labels: Sequence[str], **more: Any) -> Any:
            return kind(f"packfuse_{name}", text, labels, registry=self.registry, **more)

        for name, text in (("running", "Answers that are decoded"), ("waiting", "Prompts waiting")):
            gauge = labeled(Gauge, f"rows_{name}", text, ())
            gauge.set_function(lambda name=name: self._sum(name))
        self._requests = labeled(Counter, "requests", "Requests", ("route", "status"))
        self._tokens = labeled(Counter, "tokens", "Tokens of answered requests", ("model", "kind"))
        self._first = labeled(
            Histogram,
            "time_to_first_token_seconds",
            "From the request to the first token",
            ("model",),
            buckets=_SECONDS,
        )
        self._step = labeled(
            Histogram, "step_seconds", "Time of a step of all answers", ("model",), buckets=_SECONDS
        )
        self._agreed = labeled(
            Histogram,
            "agreement_share",
            "Share of steps at which all members had the same first choice",
            ("model",),
            buckets=_SHARES,
        )
        self._weight = labeled(
            Histogram,
            "member_weight",
            "Weights of a member over the prompts",
            ("model", "member"),
            buckets=_SHARES,
        )

    def _sum(self, name: str) -> int:
        return sum(getattr(pack.scheduler, name) for pack in self._served.packs.values())

    def watch(self, name: str, pack: Pack) -> None:
        """Measure the steps of a pack."""
        step = self._step.labels(name)
        pack.scheduler.on_step = lambda _, seconds: step.observe(seconds)

    def count(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def first_token(self, model: str, submitted: float, chosen: float | None = None) -> None:
        """Record when an answer began; times by `time.monotonic`."""
        self._first.labels(model).observe((chosen or time.monotonic()) - submitted)

    def answered(self, model: str, replies: Sequence[Reply], each: int) -> None:
        """Record answers, of which each prompt has `each`."""
        for reply in replies[::each]:
            self._tokens.labels(model, "prompt").inc(reply.record.usage.prompt_tokens)
        for reply in replies:
            record = reply.record
            self._tokens.labels(model, "completion").inc(record.usage.completion_tokens)
            if record.agreed is not None:
                self._agreed.labels(model).observe(record.agreed)
            for member, weight in record.weights.items():
                self._weight.labels(model, member).observe(weight)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)
