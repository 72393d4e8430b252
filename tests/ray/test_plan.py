"""The plan: against sums that can be done by hand, and bounds that nothing passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from packfuse.cli import app
from packfuse.errors import ConfigError
from packfuse.ray.plan import Plan, outcomes, simulate

MS = st.floats(0, 50)
MEMBERS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.just("m"), "step": st.floats(1, 50), "row": MS, "prompt": st.floats(0, 2),
            "away": st.booleans(), "columns": st.integers(0, 300_000), "price": MS,
        }
    ),
    min_size=1, max_size=3,
)  # fmt: skip
PLANS = st.fixed_dictionaries(
    {
        "members": MEMBERS, "rows": st.integers(1, 5), "requests": st.integers(1, 30),
        "answer_tokens": st.integers(2, 8), "prompt_tokens": st.integers(1, 90),
        "rate": st.none() | st.floats(0.1, 100), "hop": MS, "fuse": MS,
    }
).map(Plan.check)  # fmt: skip


def plan(**more: Any) -> Plan:
    member = {"name": "m", "step": 20.0, "row": 1.0, "prompt": 0.5, "price": 3.6}
    base = {"members": [member], "prompt_tokens": 100, "answer_tokens": 11, "rows": 1}
    return Plan.check({**base, **more})


def test_one_answer_after_the_other_is_a_sum() -> None:
    # 20 + 100 * 0.5 for the prompt, and 10 steps of 20 + 1.
    ((arrived, end),) = simulate(plan(requests=1), 1)
    assert (arrived, end) == pytest.approx((0.0, 0.280))
    one, four = outcomes(plan(requests=8), [1, 4])
    assert one.tokens_per_second == pytest.approx(88 / (8 * 0.280))
    assert four.tokens_per_second == pytest.approx(88 / (2 * 0.280))
    assert (one.efficiency, four.efficiency) == pytest.approx((1.0, 1.0))
    assert one.price_per_million == pytest.approx(3.6 / 3600 / one.tokens_per_second * 1e6)
    assert four.price_per_million == pytest.approx(one.price_per_million)
    assert (four.median_seconds, four.p95_seconds) == pytest.approx((0.420, 0.560))


def test_members_away_compute_beside_the_others() -> None:
    here = {"name": "a", "step": 20.0, "row": 1.0}
    near = {"name": "b", "step": 15.0, "row": 0.5}
    far = {**near, "away": True, "columns": 100_000}
    assert plan(members=[here, near]).step_ms(4) == pytest.approx(24 + 17)
    # 4 rows of 100,000 numbers of 32 bits over 1 Gbit/s: 12.8 ms.
    assert plan(members=[here, far], link=1.0, hop=0.5).step_ms(4) == pytest.approx(0.5 + 17 + 12.8)
    assert plan(members=[here, far], link=100.0, hop=0.5).step_ms(4) == pytest.approx(24)


@settings(deadline=None)
@given(PLANS, st.integers(1, 5))
def test_no_request_is_lost_and_no_answer_is_too_soon(given: Plan, replicas: int) -> None:
    ended = list(simulate(given, replicas))
    assert len(ended) == given.requests
    least = (given.prompt_ms() + (given.answer_tokens - 1) * given.step_ms(1)) / 1000
    assert all(end - arrived >= least * (1 - 1e-9) for arrived, end in ended)
    (found,) = outcomes(given, [replicas])
    # No step writes more than one token a row, and a first token comes of its prompt.
    steps = (given.answer_tokens - 1) / given.answer_tokens * found.tokens_per_second
    best = max(rows / given.step_ms(rows) for rows in range(1, given.rows + 1))
    assert steps <= replicas * best * 1000 * (1 + 1e-9)


def test_the_command_prints_a_table_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    member = ["--member", "qwen:step=20,row=1,prompt=0.1,price=2", "--requests", "64"]
    done = CliRunner().invoke(app, ["plan", *member, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()[1:8]] == [
        "1", "2", "4", "8", "16", "32", "64",
    ]  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--member", "a:step=1", "--replicas", "0"], "are not numbers of replicas"),
        (["--member", "a"], "the plan: members.0.step: Field required"),
        (["--member", "a:step=-1"], "members.0.step: Input should be greater"),
        (["--member", "a:step=1,stepp=2"], "members.0.stepp: Extra inputs"),
    ],
)
def test_a_plan_that_cannot_be_names_the_field(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())


def test_a_plan_needs_a_member() -> None:
    with pytest.raises(ConfigError, match="the configuration: members"):
        Plan.check({"members": []})
