"""Log-probabilities from logits, and the check that they are numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from packfuse.errors import MemberError


def whole_logps(logits: Tensor, size: int) -> Tensor:
    """Log-probabilities `[P, columns]` in nats of float32 logits, which are changed in place.

    Args:
        logits: `[P, columns]`.
        size: Number of tokens; columns behind them have no token.
    """
    if size < logits.shape[-1]:
        logits[:, size:] = float("-inf")
    return torch.log_softmax(logits, dim=-1)


def check_numbers(name: str, column: Tensor, counts: Sequence[int]) -> None:
    """Refuse log-probabilities that are NaN.

    Args:
        name: Name of the member.
        column: `[P]`, log-probabilities of one token. A single NaN or infinity among the logits of
            a position makes all of its log-probabilities NaN.
        counts: By position, the number of tokens read there.

    Raises:
        MemberError: naming the member and the first position.
    """
    broken = torch.isnan(column)
    if bool(broken.any()):
        raise nan_error(name, counts[int(broken.nonzero()[0])])


def nan_error(name: str, count: int) -> MemberError:
    """The error of a member whose logits are NaN after so many tokens."""
    return MemberError(
        f"member {name!r} gave NaN logits after token {count}",
        hint="load it in bfloat16 or float32, or leave it out of the pack",
    )


def best_tokens(scores: Tensor) -> Tensor:
    """The first token of the highest score of each row, `[..., V]` to `[...]`, as by `argmax`.

    On a processor NumPy takes a twentieth of torch's time, which does not vectorize `argmax`.
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        return scores.argmax(-1)
    return torch.as_tensor(scores.detach().numpy().argmax(-1))


def sampled_tokens(probs: Tensor) -> Tensor:
    """A token for each row of probabilities, `[B, V]` to `[B]`, drawn as by `torch.multinomial`.

    That function waits for the device, and an error of it there ends the process. Here a row of NaN
    gives some token.
    """
    return best_tokens(probs / torch.empty_like(probs).exponential_())
