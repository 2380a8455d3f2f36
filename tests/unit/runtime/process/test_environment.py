from __future__ import annotations

import sys

import pytest
from threadpoolctl import threadpool_info

from mpipar.errors import UsageError
from mpipar.runtime.machines.messages import Knobs
from mpipar.runtime.process import environment


def test_knobs_are_off_without_environment(monkeypatch):
    monkeypatch.delenv("MPIPAR_SLOW", raising=False)
    monkeypatch.delenv("MPIPAR_SHUFFLE", raising=False)
    assert environment.knobs() == Knobs()


def test_knobs_are_read(monkeypatch):
    monkeypatch.setenv("MPIPAR_SLOW", "2:4, 3:1.5")
    monkeypatch.setenv("MPIPAR_SHUFFLE", "17")
    knobs = environment.knobs()
    assert knobs == Knobs(((2, 4.0), (3, 1.5)), 17)
    assert [knobs.slowdown(rank) for rank in (1, 2, 3)] == [1.0, 4.0, 1.5]


@pytest.mark.parametrize(
    ("name", "value"), [("MPIPAR_SLOW", "2"), ("MPIPAR_SLOW", "a:b"), ("MPIPAR_SHUFFLE", "x")]
)
def test_malformed_knob_is_an_error_that_shows_the_form(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="must look like 2:4"):
        environment.knobs()


def test_patience(monkeypatch):
    monkeypatch.delenv("MPIPAR_PATIENCE", raising=False)
    assert environment.patience() == environment.PATIENCE_SECONDS
    monkeypatch.setenv("MPIPAR_PATIENCE", "2.5")
    assert environment.patience() == 2.5


@pytest.mark.parametrize("value", ["0", "-3", "soon"])
def test_patience_is_a_positive_number(monkeypatch, value):
    monkeypatch.setenv("MPIPAR_PATIENCE", value)
    with pytest.raises(UsageError, match="MPIPAR_PATIENCE"):
        environment.patience()


def test_tuned_process_has_single_threaded_blas():
    environment.tune_process()
    assert sys.getswitchinterval() == pytest.approx(environment.SWITCH_SECONDS)
    assert {library["num_threads"] for library in threadpool_info()} <= {1}
