"""The gate of SAFE: fuse at token boundaries where the members' first choices differ."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.gates.base import Gate
from packfuse.models.logps import best_tokens


class Safe(Gate):
    """Open where a token of every member ends and the members' most probable tokens differ.

    Inside a token of a member, the distribution of that member is unreliable. Where all members
    have the same first choice, the fused distribution has it, too.

    This gate is kept as the baseline of SAFE (arXiv 2510.15346). No measured set favors it over
    `every`.

    Example:
        >>> import torch
        >>> logps = torch.tensor([[[0.7, 0.3], [0.7, 0.3]], [[0.2, 0.8], [0.6, 0.4]]]).log()
        >>> Safe().opens(logps, torch.full((2, 2), 0.5), logps[0], torch.tensor([True, True]))
        tensor([ True, False])
    """

    name: ClassVar[str] = "safe"
    source: ClassVar[str] = "SAFE, arXiv 2510.15346"

    def opens(
        self, logps: Tensor, weights: Tensor, reference_logps: Tensor, at_boundary: Tensor
    ) -> Tensor:
        """See `Gate.opens`."""
        no_weight = (weights.T == 0).to(reference_logps.device)
        agrees = (best_tokens(logps) == best_tokens(reference_logps)) | no_weight
        return at_boundary & ~agrees.all(0)
