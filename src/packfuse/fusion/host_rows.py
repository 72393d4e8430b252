"""Distributions that straddle filters need on the host, copied there with few waits."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from packfuse.alignment.token_pairs import Logps
from packfuse.transfer import Download


class HostRow:
    """A distribution on its way to the host.

    It is begun where the distribution is computed, so that it is there when the next token has been
    chosen, for which the host waits anyway.
    """

    def __init__(self, logps: Tensor) -> None:
        """Begin to copy log-probabilities `[columns]`, nats."""
        self.logps, self._download = logps, Download([logps])

    @property
    def array(self) -> Logps:
        """The log-probabilities; waits until they are there."""
        found: Logps = self._download.wait()[0]
        return found


class HostRows:
    """The distributions of one step that filters need, by the tensors that hold them."""

    def __init__(self, ahead: Iterable[HostRow], wanted: Iterable[Tensor]) -> None:
        """Copy what was not copied ahead, together, so that the host waits once.

        Args:
            ahead: Distributions that were copied ahead.
            wanted: Distributions `[columns]` that are needed.
        """
        known = {id(row.logps): row for row in ahead}
        missing = {id(logps): logps for logps in wanted if id(logps) not in known}
        copies = Download(list(missing.values())).wait() if missing else []
        self._arrays = dict(zip(missing, copies, strict=True))
        self._arrays.update((key, row.array) for key, row in known.items())

    def __getitem__(self, logps: Tensor) -> Logps:
        """The log-probabilities of a tensor that is wanted."""
        return self._arrays[id(logps)]
