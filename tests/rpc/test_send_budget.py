"""Who waits, and who goes on, when all connections together hold too much for sending."""

from __future__ import annotations

import asyncio

import pytest
from rpc_support import turns, virtual

from echostream.rpc.send_budget import GUARANTEED, SendBudget, SendShare

LIMIT = 100 * GUARANTEED


def shares(count: int, limit: int = LIMIT) -> tuple[SendBudget, list[SendShare]]:
    budget = SendBudget(limit)
    loop = asyncio.get_running_loop()
    return budget, [SendShare(budget, loop) for _ in range(count)]


@virtual
async def test_who_holds_much_waits_and_who_holds_little_does_not() -> None:
    budget, (greedy, modest) = shares(2)
    greedy.charge(LIMIT)
    assert not budget.tight
    assert not greedy.refuses
    greedy.charge(1)
    assert greedy.refuses
    assert not modest.refuses
    modest.charge(GUARANTEED + 1)
    assert modest.refuses
    greedy.settle(0)
    assert not budget.tight
    assert not modest.refuses
    assert budget.held == GUARANTEED + 1


@virtual
async def test_what_is_guaranteed_shrinks_with_the_number_of_members() -> None:
    budget, members = shares(400)
    assert budget.guaranteed == LIMIT // 400
    for member in members[3:]:
        member.close()
    assert (budget.guaranteed, budget.members) == (GUARANTEED, 3)


@virtual
async def test_connections_have_their_turns_and_each_brings_what_it_waited_for() -> None:
    budget, (full, *others) = shares(4)
    order = []

    async def bring(number: int) -> None:
        await others[number].wait()
        others[number].charge(GUARANTEED)
        order.append(number)

    for other in others:
        other.charge(2 * GUARANTEED)
    full.charge(LIMIT)
    waiting = [asyncio.ensure_future(bring(number)) for number in (0, 0, 0, 1, 2)]
    await turns()
    assert order == []
    full.settle(LIMIT - 8 * GUARANTEED)  # room for three, the last of which goes over
    await turns()
    assert order == [0, 1, 2]
    assert budget.held == LIMIT + GUARANTEED
    assert budget.tight
    full.settle(0)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 0, 0]
    await turns()
    assert not budget.tight


@virtual
async def test_who_comes_later_does_not_overtake() -> None:
    budget, (full, early, late) = shares(3)
    for share in (early, late):
        share.charge(2 * GUARANTEED)
    full.charge(LIMIT)
    waiting = asyncio.ensure_future(early.wait())
    await turns()
    full.settle(0)
    assert budget.held <= LIMIT
    assert late.refuses
    await waiting
    await turns()
    assert not late.refuses


@virtual
async def test_a_connection_whose_own_reader_reads_goes_on_behind_others_that_do_not() -> None:
    budget, (stuck, own) = shares(2)
    stuck.charge(2 * LIMIT)
    own.charge(2 * GUARANTEED)
    waits = [asyncio.ensure_future(own.wait()) for _ in range(3)]
    await turns()
    own.settle(GUARANTEED)
    await asyncio.gather(*waits)
    assert budget.tight


@pytest.mark.parametrize("passing", [False, True])
@virtual
async def test_who_gives_up_lets_the_next_one_pass(passing: bool) -> None:
    budget, (full, first, second) = shares(3)
    for share in (first, second):
        share.charge(2 * GUARANTEED)
    full.charge(LIMIT)
    gone = asyncio.ensure_future(first.wait())
    next_one = asyncio.ensure_future(second.wait())
    await turns()
    if passing:
        full.settle(0)
    gone.cancel()
    if not passing:
        full.settle(0)
    await next_one
    await turns()
    assert gone.cancelled()
    assert not budget.tight


@virtual
async def test_a_connection_that_ends_gives_back_all_and_leaves_nobody_waiting() -> None:
    budget, (ended, other) = shares(2)
    ended.charge(2 * LIMIT)
    other.charge(2 * GUARANTEED)
    waits = [asyncio.ensure_future(share.wait()) for share in (ended, ended, other)]
    await turns()
    ended.close()
    ended.close()
    await asyncio.gather(*waits)
    ended.charge(LIMIT)
    assert not ended.refuses
    assert (budget.held, budget.members) == (2 * GUARANTEED, 1)
    await turns()
    assert not budget.tight
