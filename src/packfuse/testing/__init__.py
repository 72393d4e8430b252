"""Laws for parts of your own: subclass a mixin, name your part, and run pytest.

Import from here: `RuleLaws`, `WeightingLaws`, `AlignmentLaws` and `MemberLaws`, whose `test_*`
methods hold for every part of packfuse. This room may use all rooms below `pack`; nothing of
packfuse imports it.

Example:
    A file `test_median.py` beside a rule `Median`:

        from my_package.rules import Median
        from packfuse.testing import RuleLaws

        class TestMedian(RuleLaws):
            part = Median()
"""

from packfuse.testing.alignments import AlignmentLaws
from packfuse.testing.members import MemberLaws
from packfuse.testing.rules import RuleLaws
from packfuse.testing.weightings import WeightingLaws

__all__ = ["AlignmentLaws", "MemberLaws", "RuleLaws", "WeightingLaws"]
