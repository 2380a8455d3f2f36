from __future__ import annotations

from mpipar.runtime.machines.report_interval import beat_seconds, first_report, report_seconds


def test_small_jobs_report_at_once_and_beat_every_second():
    assert (report_seconds(400), first_report(7, 400), beat_seconds(400)) == (0, 0, 1)


def test_rank_0_hears_as_much_of_a_job_however_large_it_is():
    for ranks in (16_000, 100_000):
        assert ranks / report_seconds(ranks) == 10_000
        assert ranks / beat_seconds(ranks) == 2000


def test_first_reports_are_spread():
    first = [first_report(rank, 10_000) for rank in range(1, 10_001)]
    assert min(first) == 0
    assert max(first) < report_seconds(10_000)
    assert len(set(first)) > 50
