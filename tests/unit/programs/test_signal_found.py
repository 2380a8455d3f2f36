"""What counts as signal, and what is said where there is none; the numbers are measured ones."""

from __future__ import annotations

import pytest

from mpipar.programs.soft_iteration import Signal


@pytest.mark.parametrize(
    ("gain", "error", "found"),
    [
        (0.0012, 0.0012, False),  # noise
        (0.011, 0.003, False),  # as much as 60 images of noise
        (0.042, 0.018, False),  # SNR 0.05, from 60 A
        (0.063, 0.018, True),  # SNR 0.05, from 33 A
        (43.0, 0.9, True),
    ],
)
def test_signal_must_be_certain_and_of_some_size(gain: float, error: float, found: bool) -> None:
    assert Signal(13.0, 0.4, gain, error).found == found


@pytest.mark.parametrize(
    ("coarse", "error", "shown"), [(0.02, 0.004, False), (0.6, 0.3, False), (13.4, 0.4, True)]
)
def test_the_coarse_shape_is_said_to_be_seen_only_if_it_is(
    coarse: float, error: float, shown: bool
) -> None:
    """Noise holds a little of what is shared, by several standard errors."""
    said = Signal(coarse, error, 0.0, 0.001).verdict(60.0, "here")
    assert ("something of the model's coarse shape" in said) == shown
    assert ("no particle like the model at all" in said) != shown
    assert "60 A" in said
    assert "here" in said
