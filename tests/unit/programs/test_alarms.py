"""Each alarm is said in its case and in no other; the numbers are those of docs/refine.md."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import ndimage

from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.matches import Matches
from mpipar.cryoem.orientation_spread import DirectionalResolution, OrientationSpread
from mpipar.cryoem.particle_quality import ParticleQuality, particle_quality
from mpipar.cryoem.symmetry import operators
from mpipar.cryoem.symmetry_check import CONVINCING
from mpipar.programs import alarms
from mpipar.programs.alarms import Alarm, Findings, RunEvidence, StartingModel
from mpipar.programs.convergence import LOCAL, SEARCH, FinishedIteration
from mpipar.programs.iteration import Maps
from tests.support.small_refinement import small

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BOX, PIXEL_SIZE, START = 32, 5.0, 40.0
RADIUS = 60.0  # A


def molecule(seed: int = 0, *, centre: tuple[float, float, float] = (0, 0, 0)) -> NDArray[Any]:
    """Balls of density about a centre, x y z in A, which is that of their mass."""
    random = np.random.default_rng(seed)
    places = random.uniform(-30, 30, (40, 3)) * (1.0, 0.7, 0.4)
    map_ = np.zeros((BOX,) * 3, np.float32)
    for place in places - places.mean(axis=0) + centre:
        z, y, x = np.rint(place[::-1] / PIXEL_SIZE).astype(int) + BOX // 2
        map_[z, y, x] += 1.0
    return np.asarray(ndimage.gaussian_filter(map_, 1.2), np.float32)


def filtered(map_: NDArray[Any], resolution: float = START) -> NDArray[np.float32]:
    return filter_shells(map_, lowpass_gain(BOX, BOX * PIXEL_SIZE / resolution))


def step(resolution: float, jumped: float, *, exhaustive: bool = True) -> FinishedIteration:
    kind = SEARCH if exhaustive else LOCAL
    return FinishedIteration(resolution, jumped, kind, complete=True, evidence=9.0)


HISTORY = [step(25, 1.0), step(20, 0.08), step(17, 0.02), step(16, 0.0, exhaustive=False)]


def good(*, start: NDArray[np.float32] | None = None, **changes: Any) -> RunEvidence:
    """The end of a run in which all is well; or with another start, or other evidence."""
    usual = RunEvidence(
        history=HISTORY,
        finished=True,
        resolution=16.0,
        start=StartingModel(filtered(molecule()) if start is None else start, START),
        combined=molecule(),
        pixel_size=PIXEL_SIZE,
        radius=RADIUS,
        spread=OrientationSpread(0.97, 0.0),
        directions=DirectionalResolution(
            np.eye(3), np.zeros((3, 17)), np.array([15.0, 16.0, 17.5])
        ),
    )
    return replace(usual, **changes)


def names(evidence: RunEvidence) -> list[str]:
    return [alarm.name for alarm in alarms.alarms_of(evidence)]


def sentence(evidence: RunEvidence) -> str:
    (alarm,) = alarms.alarms_of(evidence)
    return str(alarm)


def test_a_good_run_has_no_alarm() -> None:
    assert names(good()) == []


@pytest.mark.parametrize(
    "start",
    [
        filtered(molecule())[:, :, ::-1],  # the other hand
        filtered(molecule(), 60.0),  # coarser
        ndimage.zoom(filtered(molecule()), 1.1)[1:33, 1:33, 1:33],  # stretched
    ],
    ids=["hand", "coarse", "stretched"],
)
def test_a_start_that_is_only_poor_has_no_alarm(start: NDArray[np.float32]) -> None:
    assert names(good(start=start, resolution=12.0)) == []


def test_half_of_the_molecule_as_a_start_has_no_alarm_where_the_map_is_fine() -> None:
    start = filtered(molecule() * (np.arange(BOX) > BOX // 2 + 1))
    assert names(good(start=start, resolution=13.0)) == []
    assert names(good(start=start, resolution=20.0)) == ["not the start any more"]


@pytest.mark.parametrize("resolution", [40.0, 31.0, 60.0])
def test_a_resolution_that_is_the_starts(resolution: float) -> None:
    assert names(good(resolution=resolution)) == ["resolution not past the start"]
    assert f"{resolution:.1f} A, is not clearly past the 40 A" in sentence(
        good(resolution=resolution)
    )


def test_a_fine_start_needs_a_shell_and_a_half_and_a_tenth_more() -> None:
    """160 A wide: a start of 12 A is at shell 13.3, and 10.9 A at 14.7."""
    fine = replace(good(), start=StartingModel(filtered(molecule(), 12.0), 12.0))
    assert names(replace(fine, resolution=11.5)) == ["resolution not past the start"]
    assert names(replace(fine, resolution=10.5)) == []


def test_before_the_end_the_resolution_is_not_judged() -> None:
    assert names(good(resolution=40.0, finished=False)) == []


def test_before_poses_have_settled_nothing_is_sure() -> None:
    bad = good(
        history=[step(40, 1.0), step(40, 0.9)],
        spread=OrientationSpread(0.1, 0.3),
        combined=-molecule(),
        finished=False,
    )
    assert names(bad) == []
    assert names(replace(bad, finished=True)) == [
        "poses still moving",
        "orientations poorly spread",
        "wrong contrast",
    ]


def test_without_signal_only_the_model_is_judged() -> None:
    noise = good(combined=-molecule(), resolution=60.0, spread=OrientationSpread(0.1, 0.3))
    assert "wrong contrast" in names(noise)
    assert names(replace(noise, signal=False)) == []
    model = StartingModel(filtered(molecule()), START, symmetric=0.2)
    assert names(replace(noise, start=model, signal=False)) == ["symmetry not shown"]


def test_poses_that_still_drift_at_the_end() -> None:
    """As where --iter ends a run whose map is bent by its start."""
    drifting = replace(step(33, 0.0, exhaustive=False), drift=0.2)
    history = [step(40, 1.0), step(33, 0.01), drifting]
    assert "moved their rims by 20% of the resolution" in sentence(good(history=history))
    assert names(good(history=[*history, replace(drifting, drift=0.1)])) == []
    assert names(good(history=history, finished=False)) == []
    searching = replace(drifting, kind=SEARCH)
    assert names(good(history=[step(40, 1.0), searching])) == [], "it has not come to rest yet"


def test_poses_that_still_moved_in_the_last_search() -> None:
    history = [step(40, 1.0), step(35, 0.4), step(33, 0.33), step(33, 0.0, exhaustive=False)]
    assert "33% of the particles" in sentence(good(history=history))
    history[2] = step(33, 0.04)
    assert names(good(history=history)) == []


def test_one_search_says_nothing_of_moving() -> None:
    """In the first iteration all poses are new (--iter 1)."""
    assert names(good(history=[step(16, 1.0)])) == []


def test_orientations_poorly_spread() -> None:
    few_sides = good(spread=OrientationSpread(0.28, 0.0))
    assert names(few_sides) == ["orientations poorly spread"]
    assert "28% of them" in sentence(few_sides)
    assert "15.0 A in the best direction and 17.5 A in the worst" in sentence(few_sides)
    assert "no data" not in sentence(few_sides)
    missing = good(spread=OrientationSpread(0.05, 0.3), directions=None)
    assert "30% of the directions have no data" in sentence(missing)


@pytest.mark.parametrize("efficiency", [0.6, 0.77])  # half near one view; side views
def test_orientations_that_are_good_enough(efficiency: float) -> None:
    assert names(good(spread=OrientationSpread(efficiency, 0.0))) == []
    assert names(good(spread=None)) == []


def test_symmetry_that_the_model_does_not_show() -> None:
    usual = good()
    evidence = replace(usual, start=replace(usual.start, symmetric=0.4))
    assert names(evidence) == ["symmetry not shown"]
    assert "(correlation 0.40 with its mates; 0.6 and more" in sentence(evidence)


@pytest.mark.parametrize("turns", [3, 4])
def test_the_symmetry_of_the_model_is_measured(tmp_path: Path, turns: int) -> None:
    made = small(tmp_path, count=10)
    square = molecule()[8:24, 8:24, 8:24]
    turned = np.sum([np.rot90(square, turn, axes=(1, 2)) for turn in range(4)], axis=0)
    inputs = replace(made.inputs, model=turned)
    start = alarms.starting_model(inputs, made.settings, operators(f"C{turns}"))
    assert (start.symmetric > CONVINCING) == (turns == 4)


@pytest.mark.parametrize(("start", "combined"), [(1, -1), (-1, 1)])
def test_wrong_contrast(start: int, combined: int) -> None:
    evidence = good(start=start * filtered(molecule()), combined=combined * molecule())
    assert names(evidence) == ["wrong contrast"]


def test_a_map_of_something_else_than_the_start() -> None:
    other = good(start=filtered(molecule(seed=5)).swapaxes(0, 2), resolution=25.0)
    assert names(other) == ["not the start any more"]
    assert "at 40 A the map has become something else" in sentence(other)


def test_a_fine_map_unlike_the_start_is_believed_if_views_are_even() -> None:
    """Poses that all follow one wrong model make a map of much detail, too, but of few sides."""
    other = good(start=filtered(molecule(seed=5)).swapaxes(0, 2), resolution=12.0)
    assert names(other) == []
    wrong = replace(other, spread=OrientationSpread(0.73, 0.0))
    assert names(wrong) == ["not the start any more"]
    assert names(good(resolution=12.0, spread=OrientationSpread(0.73, 0.0))) == []


def test_a_fine_start_that_differs_in_detail_has_no_alarm() -> None:
    """At 12 A, most of the start is another structure of the same shape."""
    detail = np.random.default_rng(0).normal(size=(BOX,) * 3) * (molecule() > 0.02)
    fine = filtered(detail, 12.0) - filtered(detail, 30.0)
    start = molecule() + 3 * molecule().std() / fine.std() * fine
    evidence = replace(good(resolution=10.5), start=StartingModel(filtered(start, 12.0), 12.0))
    alike = np.corrcoef(evidence.combined.ravel(), evidence.start.volume.ravel())[0, 1]
    assert alike < alarms.ALIKE_AT_START
    assert names(evidence) == []


def test_particles_like_noise() -> None:
    """Where the map has nothing beyond its start, the held-out half map has not, either."""
    random = np.random.default_rng(0)

    def matched(own: float, held: float) -> ParticleQuality | None:
        unit = np.sqrt(np.full(200, 0.5))
        own_cross, held_cross = (random.normal(mean, 0.8, 200) * unit for mean in (own, held))
        ones = np.ones(200)
        return particle_quality(Matches(own_cross, ones, held_cross, ones), 1.0)

    unsupported = matched(12.0, 0.5)
    assert names(good(quality=unsupported)) == ["particles match like noise"]
    assert names(good(quality=unsupported, resolution=40.0)) == ["resolution not past the start"]
    assert names(good(quality=matched(6.0, 0.0), resolution=40.0)) == [
        "resolution not past the start",
        "particles match like noise",
    ]
    assert names(good(quality=matched(12.0, 8.0))) == []


def test_a_map_that_is_off_its_centre() -> None:
    moved = molecule(centre=(0, 20, 0))
    off = good(start=filtered(moved), combined=moved, radius=75.0)
    assert names(off) == ["centre off"]
    assert "% of the diameter" in sentence(off)
    moved = molecule(centre=(0, 5, 0))
    assert names(good(start=filtered(moved), combined=moved)) == []


def test_a_head_on_a_stalk_is_centred_by_its_mass_or_by_its_ends() -> None:
    z, y, x = (np.indices((BOX,) * 3) - BOX // 2) * PIXEL_SIZE
    aside = np.sqrt(x**2 + y**2)
    head = np.sqrt(aside**2 + (z - 20) ** 2) < 25
    shape = (head | ((aside < 8) & (np.abs(z) < 45))).astype(np.float32)
    assert ndimage.center_of_mass(shape)[0] > BOX // 2 + 0.1 * 2 * RADIUS / PIXEL_SIZE
    for moved, expected in ((0, []), (-3, []), (3, ["centre off"])):
        map_ = np.roll(shape, moved, axis=0)
        assert names(good(start=filtered(map_), combined=map_, radius=68.0)) == expected


def test_a_map_that_is_cut_off() -> None:
    assert names(good(radius=25.0)) == ["map cut off"]
    assert "outside of the particle's diameter, 50 A" in sentence(good(radius=25.0))


def test_empty_maps_are_no_error() -> None:
    empty = np.zeros((BOX,) * 3, np.float32)
    assert names(good(start=empty, combined=empty)) == []


def test_the_search_has_just_ended_once() -> None:
    ended = [n for n in range(len(HISTORY) + 1) if alarms.search_has_just_ended(HISTORY[:n])]
    assert ended == [4]
    assert not alarms.search_has_just_ended([*HISTORY, step(16, 0.0, exhaustive=False)])


def findings(evidence: RunEvidence) -> Findings:
    empty = np.zeros((16,) * 3, np.float32)
    maps = Maps(np.stack([empty] * 2), empty, empty, np.zeros(9), np.zeros(9), np.zeros(9))
    return Findings(maps, evidence, tuple(alarms.alarms_of(evidence)))


def test_alarms_of_other_measurements_are_told_too() -> None:
    junk = Alarm("junk", "half of the particles are junk")
    one = findings(good(resolution=50.0))
    both = replace(one, alarms=(*one.alarms, junk))
    assert both.in_short().endswith("resolution not past the start, junk")
    assert both.block()[-1] == "  junk: half of the particles are junk"


def test_a_block_of_alarms_fits_a_terminal() -> None:
    assert findings(good()).block() == []
    assert findings(good()).in_short() == ""
    bad = findings(good(spread=OrientationSpread(0.2, 0.1), resolution=50.0))
    lines = bad.block()
    assert lines[0] == "warnings:"
    assert max(map(len, lines)) <= 100
    for alarm in bad.alarms:
        assert str(alarm) in " ".join(" ".join(lines).split())
    assert bad.in_short().endswith("resolution not past the start, orientations poorly spread")


def test_the_mask_is_taken_off_as_it_was() -> None:
    masked, by_mask = np.linspace(1, 0.2, 9), np.linspace(0, 0.15, 9)
    corrected = (masked - by_mask) / (1 - by_mask)
    empty = np.zeros((16,) * 3, np.float32)
    maps = Maps(np.stack([empty] * 2), empty, empty, masked, masked, corrected)
    np.testing.assert_allclose(alarms.correlation_by_mask(maps)[1:], by_mask[1:])


def test_noise_is_looked_at_as_a_run_does(tmp_path: Path) -> None:
    """All from a real data set and state; the directions at the end only."""
    made = small(tmp_path, count=120)
    random = np.random.default_rng(0)
    halves = random.normal(size=(2, 16, 16, 16)).astype(np.float32)
    curve = np.zeros(9)
    maps = Maps(halves, made.data.sphere, halves.sum(axis=0), curve, curve, curve)
    start = alarms.starting_model(made.inputs, made.settings, made.data.symmetry)
    assert start.symmetric == 1
    state = replace(made.state, resolution=start.resolution)
    history = [step(start.resolution, 1.0), step(start.resolution, 0.5)]
    found = alarms.look(made.data, state, maps, history, start, finished=True)
    assert found.maps is maps
    assert {"resolution not past the start", "poses still moving"} <= {
        alarm.name for alarm in found.alarms
    }
    assert found.evidence.directions is not None
    assert found.evidence.radius == pytest.approx(made.data.geometry.radius * 2.0)
    marked = replace(maps, mark="NO SIGNAL FOUND")
    without = alarms.look(made.data, state, marked, history, start, finished=True)
    assert not without.evidence.signal
    assert without.alarms == ()
    before = alarms.look(made.data, state, maps, history, start, finished=False)
    assert before.alarms == ()
    assert before.evidence.directions is None
