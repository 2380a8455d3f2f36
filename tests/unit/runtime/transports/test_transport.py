from __future__ import annotations

from mpipar.runtime.transports.transport import Backoff


def waits(backoff, count, **how):
    return [backoff.next(**how) for _ in range(count)]


def test_spins_then_waits_longer_and_longer_up_to_the_cap():
    backoff = Backoff()
    seconds = waits(backoff, 80)
    assert seconds[: Backoff.SPINS] == [0.0] * Backoff.SPINS
    assert seconds[Backoff.SPINS] == Backoff.FIRST
    assert max(seconds) == Backoff.CAP
    assert seconds == sorted(seconds)


def test_long_idle_raises_the_cap_and_traffic_resets_it():
    backoff = Backoff()
    assert waits(backoff, 1000)[-1] == Backoff.LONG_CAP * Backoff.CAP
    backoff.reset()
    assert waits(backoff, Backoff.SPINS + 1)[-1] == Backoff.FIRST


def test_crowded_cores_are_polled_less_but_not_without_bound():
    backoff = Backoff()
    backoff.set_crowding(3.0)
    assert max(waits(backoff, 80)) == 3 * Backoff.CAP
    backoff.set_crowding(64.0)
    assert max(waits(backoff, 1000)) == Backoff.LIMIT


def test_rank_that_computes_is_more_patient():
    backoff = Backoff()
    calm, relaxed = waits(Backoff(), 80)[-1], waits(backoff, 80, relaxed=True)[-1]
    assert relaxed == Backoff.RELAXED * calm
