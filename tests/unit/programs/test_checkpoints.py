"""A refinement's state survives its project bit for bit; other input is noticed."""

from __future__ import annotations

import dataclasses
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.matches import Matches
from mpipar.errors import CorruptStoreError, InputError
from mpipar.programs import checkpoints
from mpipar.programs.checkpoints import RunOrigin
from mpipar.programs.convergence import LOCAL, SEARCH, FinishedIteration
from mpipar.programs.dataset import ImageConstants
from mpipar.programs.inputs import read_inputs
from mpipar.programs.iteration import Maps, RefineState
from mpipar.store.project import Project
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = [
    FinishedIteration(10 / 3, 0.1 + 0.2, SEARCH, False, 0.1),
    FinishedIteration(1e-300, 1.0, LOCAL, True, 1 / 3),
]

UNKNOWN = Matches.unknown(1)


@pytest.fixture
def made(tmp_path: Path) -> Small:
    return small(tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "run", settings={}, kind="refine") as opened:
        yield opened


def read_again(project: Project) -> Project:
    return Project.open(project.path, writer=False)


def constants_of(made: Small) -> ImageConstants:
    data = made.data
    fold = (3 - data.half).astype(np.int8)
    return ImageConstants(data.half, data.offset + 1 / 3, data.gain / 3, data.largest, True, fold)


def origin_of(made: Small) -> RunOrigin:
    return RunOrigin("input", made.inputs.particles, made.data.geometry, "c1")


def state_of(made: Small) -> RefineState:
    """A state with numbers that text or float32 would not keep."""
    random, count = np.random.default_rng(0), made.inputs.particles.count
    score = random.normal(size=count)
    score[:3] = -np.inf, -0.0, 5e-324
    poses = Poses(random.normal(size=(count, 3, 3)), random.normal(size=(count, 2)) / 3, score)
    return dataclasses.replace(
        made.state,
        iteration=7,
        poses=poses,
        resolution=10 / 3,
        settled=random.random(count) < 0.5,
        jumped=0.1 + 0.2,
        drift=0.7 / 3,
        before=random.normal(size=(2, 16, 16, 16)).astype(np.float32),
        peak=random.random(count) / 3,
        evidence=-1 / 3,
        spread=0.1 + 0.2,
        matches=Matches(*random.normal(size=(4, count))),
    )


def maps_of(box: int) -> Maps:
    random = np.random.default_rng(1)

    def volume(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    curves = (random.normal(size=box // 2 + 1) for _ in range(3))
    return Maps(volume(2, box, box, box), volume(box, box, box), volume(box, box, box), *curves)


def assert_same(first: Any, second: Any) -> None:
    """Same types, same bits, field by field."""
    assert type(first) is type(second)
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if dataclasses.is_dataclass(a):
            assert_same(a, b)
        elif isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            assert a.tobytes() == np.asarray(b).tobytes(), field.name
        else:
            assert (type(a), a) == (type(b), b), field.name


def test_state_maps_and_history_round_trip(made: Small, project: Project) -> None:
    maps = maps_of(16)
    # in a soft iteration the references' curve is another one than the corrected
    state = dataclasses.replace(state_of(made), correlation=maps.masked / 3)
    checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    checkpoints.commit(project, made.data.geometry, state, maps, STEPS)
    again = read_again(project)
    assert_same(checkpoints.load_state(again), state)
    assert_same(checkpoints.load_maps(again), maps)
    assert checkpoints.load_history(again) == STEPS


def test_a_commit_from_before_matches_were_kept_is_read(
    made: Small, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoints._state_arrays(made.state)
    kept = {name: whole[name] for name in whole if name not in dataclasses.asdict(UNKNOWN)}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_state_arrays", lambda state: kept)
        checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    assert_same(checkpoints.load_state(read_again(project)), made.state)


def test_a_project_without_commits_has_no_state(project: Project) -> None:
    with pytest.raises(CorruptStoreError, match="no commit"):
        checkpoints.load_state(project)


def test_a_run_begins_with_what_stays_the_same(made: Small, project: Project) -> None:
    constants = constants_of(made)
    checkpoints.commit_first(project, constants, made.state, origin_of(made))
    again = read_again(project)
    assert_same(checkpoints.load_constants(again, "input"), constants)
    assert_same(checkpoints.load_state(again), made.state)
    assert checkpoints.load_history(again) == []


def test_constants_are_those_of_the_first_commit_also_later(made: Small, project: Project) -> None:
    checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    checkpoints.commit(project, made.data.geometry, state_of(made), maps_of(16), STEPS)
    assert_same(checkpoints.load_constants(read_again(project), "input"), constants_of(made))


def test_other_input_is_refused(made: Small, project: Project) -> None:
    checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    with pytest.raises(InputError, match="was started with other input"):
        checkpoints.load_constants(project, "other input")


def test_the_fingerprint_sees_list_model_mask_and_stacks(made: Small) -> None:
    def fingerprint() -> str:
        return checkpoints.fingerprint(read_inputs(made.settings))

    star, stack = made.inputs.particles.path, made.inputs.particles.stacks[0]
    prints = [checkpoints.fingerprint(made.inputs), fingerprint()]
    assert prints[0] == prints[1]
    text = star.read_text()
    star.write_text(text.replace("10000.0", "10000.5"))
    prints.append(fingerprint())
    star.write_text(text)
    model = made.inputs.model.copy()
    model[3, 3, 3] = np.nextafter(model[3, 3, 3], np.float32(1))
    prints.append(checkpoints.fingerprint(dataclasses.replace(made.inputs, model=model)))
    mask = np.ones_like(model)
    prints.append(checkpoints.fingerprint(dataclasses.replace(made.inputs, mask=mask)))
    with stack.open("ab") as file:
        file.write(bytes(16 * 16 * 4))
    prints.append(checkpoints.fingerprint(made.inputs))
    assert len(set(prints[1:])) == 5
    os.truncate(stack, stack.stat().st_size - 16 * 16 * 4)
    assert fingerprint() == prints[0]


def test_the_environment_that_bits_depend_on_is_kept(made: Small, project: Project) -> None:
    checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    kept = project.commits()[0].attributes["environment"]
    assert kept["numpy"] == np.__version__
    assert {"cpu", "python", "scipy", "numba", "mpipar"} <= set(kept)


def test_a_changed_environment_is_named_on_resume(
    made: Small, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.commit_first(project, constants_of(made), made.state, origin_of(made))
    assert checkpoints.changed_environment(project) == []
    monkeypatch.setattr(
        checkpoints, "version", lambda name: "0.0" if name == "scipy" else version(name)
    )
    (change,) = checkpoints.changed_environment(project)
    assert change == f"scipy was {version('scipy')}, is 0.0"


def test_a_commit_of_another_version_is_said_so_without_a_traceback(project, made):
    project.commit(0, {}, {"iteration": 0, "history": [{"resolution": 1.0, "later": 2}]})
    for load in (
        checkpoints.load_history,
        checkpoints.load_state,
        checkpoints.load_maps,
        checkpoints.changed_environment,
        lambda p: checkpoints.load_constants(p, "x"),
    ):
        with pytest.raises(CorruptStoreError, match="a commit is not as this mpipar writes it"):
            load(read_again(project))
