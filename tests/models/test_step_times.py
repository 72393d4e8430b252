"""What a member's steps take, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from packfuse.causal_lm.drafts.length import DraftLength
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read
from packfuse.models.step_times import WIDTHS, step_costs, step_times
from tests.support import fusing


class Timed(HFMember):
    """A member that takes a second a step, and a tenth of one for each token."""

    def __init__(self, member: HFMember) -> None:
        vars(self).update(vars(member))
        self.now = 0.0

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        self.now += sum(1 + len(request.ids) / 10 for request in requests)
        return super().read(requests)


@pytest.mark.parametrize("context", [512, 40])
def test_steps_are_measured_for_each_width(context: int) -> None:
    member = Timed(fusing.member("mistral", context=context))
    found = step_times(member, lambda: member.now)
    assert found == pytest.approx([1 + width / 10 for width in WIDTHS])


def test_measured_prices_decide_the_length_of_drafts() -> None:
    """Where more tokens cost nothing, drafts are long; where each costs a step, there are none."""
    free, dear = (step_costs([times]) for times in ((1.0,) * 5, (1.0, 2.0, 4.0, 8.0, 16.0)))
    assert len(free) == len(dear) == 16
    lengths = [DraftLength(0.0, 12, "cuda", 0.8, steps).best() for steps in (free, dear)]
    assert lengths == [12, 0]


def test_the_price_of_a_member_is_part_of_a_step_of_all() -> None:
    cheap, dear = (0.1,) * 5, (0.9, 0.9, 0.9, 1.8, 1.8)
    assert step_costs([cheap, dear])[:5] == pytest.approx((1.0, 1.0, 1.0, 1.0, 1.9))
    # A draft beyond the widest step is verified in several.
    length = DraftLength(0.0, 40, "cuda", 0.99, step_costs([cheap, dear]))
    assert length._verification(31) == pytest.approx(2 * 1.9)
    assert length._verification(16) == pytest.approx(1.9 + 1.0)
