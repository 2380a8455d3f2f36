"""The program behind `mpipar refine`: sequential code on rank 0; workers see only the stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from mpipar.cryoem import symmetry
from mpipar.cryoem.fourier import largest_radius
from mpipar.cryoem.search_plan import plan_search
from mpipar.cryoem.symmetry_check import CONVINCING, fitting_setting
from mpipar.errors import NoSignalError
from mpipar.programs import (
    alarms,
    checkpoints,
    dataset,
    devices,
    exports,
    iteration,
    run_folder,
    subsets,
)
from mpipar.programs.convergence import (
    SEARCH,
    SOFT,
    FinishedIteration,
    NextIteration,
    decide,
    seconds_after,
    signal_is_shown,
    with_everyone,
)
from mpipar.programs.first_look import look_at_all
from mpipar.programs.inputs import RefineInputs, read_inputs
from mpipar.programs.map_files import MapFiles, preliminary
from mpipar.programs.needs import device_need, needs
from mpipar.programs.pruning import KEEP_ALL, KEEP_EVERY, superfluous
from mpipar.programs.run_log import RunLog
from mpipar.programs.session import Clock, RefineSession
from mpipar.programs.soft_iteration import NO_SIGNAL, Signal
from mpipar.programs.soft_session import look_for_signal, weigh_poses
from mpipar.programs.volumes import centre_notes
from mpipar.runtime.process import signals
from mpipar.runtime.reports import CANNOT_REPLACE
from mpipar.views.progress import View, duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mpipar.programs.alarms import Findings
    from mpipar.programs.dataset import Dataset, Start
    from mpipar.programs.devices import DeviceChoice
    from mpipar.programs.first_look import FirstLook
    from mpipar.programs.images import StackSource
    from mpipar.programs.iteration import Maps, RefineState
    from mpipar.programs.look_stage import ImageLook, LookStage
    from mpipar.programs.soft_session import Iterated
    from mpipar.runtime.pool import Pool
    from mpipar.runtime.reports import StageStatistics
    from mpipar.runtime.stage import Task
    from mpipar.settings import RefineSettings
    from mpipar.store.project import Project

MEGABYTE = 1_000_000
OpenPool = Callable[[int, int], "Pool"]


def run(settings: RefineSettings, open_pool: OpenPool, view: View) -> None:
    """Refine, or go on with a refinement. All input is checked before the workers get any task.

    open_pool   makes the pool from: compute threads per worker, bytes of its block cache
    raises      MpiparError; verdict.json then says `failed`, or `requeue` if it can be resumed
    """
    clock = Clock()
    project: Project | None = None
    try:
        if settings.resume:
            project, settings = run_folder.reopen(
                settings, settings.path, writer=not settings.check, say=view.say
            )
        symmetry.canonical_name(settings.sym)  # before any file is opened
        with clock.phase("reading and checking input"):
            inputs = read_inputs(settings)
            operators, notes = _symmetry(inputs, settings)
        _describe(inputs, notes, view)
        if settings.check:
            if project is None:
                run_folder.require_possible(settings, settings.path)
            if not _kept(project):
                _check_images(inputs, settings, operators, open_pool, view)
            view.say("input checked; nothing was written")
            return
        project = project or run_folder.create(settings, settings.path)
        view.say(f"results go to {project.path}")
        pool = open_pool(settings.threads, settings.cache * MEGABYTE)
        if settings.replace_lost and not pool.replace_lost():
            view.say(f"note: {CANNOT_REPLACE}")
        session = RefineSession(settings, inputs, project, pool, view, clock)
        session.devices, session.device = _devices(session, operators)
        log = RunLog(project)
        log.begin(pool, session.device)
        view.record = log.add
        with log.kept():
            data, state = _prepare(session, operators)
            findings = _refine(session, data, state, log)
        project.verdict("done", "refinement finished" + findings.in_short())
    except BaseException as error:
        run_folder.close_after_error(project, error, _kept(project), view.say)
        raise
    finally:
        if project is not None:
            project.close()


def _kept(project: Project | None) -> str:
    """Return what a resumed run would go on from, in words; empty if nothing is committed."""
    commits = project.commits() if project is not None else []
    if not commits:
        return ""
    number = commits[-1].number
    return f"iteration {number}" if number else "the first look at the images"


def _symmetry(
    inputs: RefineInputs, settings: RefineSettings
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the operators of the point group, (g, 3, 3), and notes on the model."""
    setting, correlation = fitting_setting(inputs.model, settings.sym)
    usual = symmetry.settings_of(settings.sym)[0]
    operators = symmetry.operators(setting)
    notes = centre_notes(inputs.model, inputs.pixel_size)
    notes += [f"symmetry {setting}: {len(operators)} operators"] if len(operators) > 1 else []
    if setting != usual:
        notes.append(f"the model is in setting {setting}, not {usual}; {setting} is used")
    if correlation < CONVINCING:
        notes.append(
            f"the model hardly shows symmetry {setting} (correlation {correlation:.2f} with its "
            "mates): is it the right group, and is the model turned to its axes and centred?"
        )
    return operators, notes


def _describe(inputs: RefineInputs, notes: list[str], view: View) -> None:
    count = inputs.particles.count
    view.say(
        f"{count} particles of {inputs.box} x {inputs.box} pixels of {inputs.pixel_size:g} A "
        f"from {inputs.particles.path}"
    )
    for note in (*inputs.notes, *notes):
        view.say(f"note: {note}")


def _devices(
    session: RefineSession, operators: NDArray[np.float64]
) -> tuple[DeviceChoice | None, str]:
    """Return the GPUs that align and their name; None and nothing: the processors align."""
    settings, inputs = session.settings, session.inputs
    if settings.gpu is None:
        return None, ""
    with session.phase("getting the GPUs ready"):
        needed = device_need(inputs, operators, settings.seed)
        choice, found = devices.choose(session.pool, settings.gpu, needed)
    if choice is None:
        session.view.say(f"note: {found}; the processors align")
        return None, ""
    session.view.say(f"aligning on {found}")
    return choice, found


def _prepare(session: RefineSession, operators: Any) -> tuple[Dataset, RefineState]:
    """Return the data set, and the state to go on from: the last commit's, or a first one."""
    settings, inputs, project = session.settings, session.inputs, session.project
    input_hash = checkpoints.fingerprint(inputs)
    start = _start(inputs, settings, operators, session.view)
    if project.commits():
        constants = checkpoints.load_constants(project, input_hash)
        for change in checkpoints.changed_environment(project, session.device):
            session.view.say(f"note: the bits may differ from an undisturbed run's: {change}")
        session.history = checkpoints.load_history(project)
        data = dataset.make_dataset(inputs, settings, start, operators, constants, session.devices)
        session.pool.serve(inputs.stacks.divided(data.blocks))
        return data, checkpoints.load_state(project)
    look = _first_look(session, start)
    constants = look.constants
    for note in look.notes:
        session.view.say(f"note: {note}")
    data = dataset.make_dataset(inputs, settings, start, operators, constants, session.devices)
    if session.devices is not None:
        session.pool.serve(inputs.stacks.divided(data.blocks))
    state = iteration.first_state(inputs, data, look.spectra, start)
    with session.phase("saving"), signals.postponed():
        origin = checkpoints.RunOrigin(
            input_hash,
            inputs.particles,
            data.geometry,
            symmetry.setting_with(settings.sym, data.symmetry),
            session.device,
        )
        checkpoints.commit_first(project, constants, state, origin)
    return data, state


def _start(inputs: RefineInputs, settings: RefineSettings, operators: Any, view: View) -> Start:
    """Return the low-passed model and what follows from it."""
    start = dataset.start_of(inputs, settings, len(operators))
    diameter = 2 * start.geometry.radius * start.geometry.pixel_size
    view.say(f"particle diameter {diameter:.0f} A, model filtered to {start.resolution:.0f} A")
    return start


def _check_images(
    inputs: RefineInputs, settings: RefineSettings, operators: Any, open_pool: OpenPool, view: View
) -> None:
    """Look at all images as a run does, and refuse what a run would refuse."""
    start = _start(inputs, settings, operators, view)
    pool = open_pool(settings.threads, settings.cache * MEGABYTE)

    def measure(source: StackSource, stage: LookStage, tasks: list[Task]) -> Sequence[ImageLook]:
        pool.serve(source)
        results: Sequence[ImageLook] = pool.run(stage, {}, tasks).results
        return results

    look = look_at_all(inputs, start, settings, measure)
    for note in look.notes:
        view.say(f"note: {note}")
    threads_only = not pool.description.startswith("mpi")
    workers = pool.workers
    for line in needs(
        inputs, start.geometry, operators, settings, workers, threads_only=threads_only
    ):
        view.say(line)


def _first_look(session: RefineSession, start: Start) -> FirstLook:
    """Look at all images on the workers."""
    served: list[StackSource] = []

    def measure(source: StackSource, stage: LookStage, tasks: list[Task]) -> Sequence[ImageLook]:
        session.pool.serve(source)
        served.append(source)
        outcome = session.run("first look", stage, {}, tasks)
        megabytes = outcome.statistics.bytes_served / MEGABYTE
        session.view.say(f"first look at all images: {megabytes:.1f} MB served to the workers")
        return outcome.results

    with session.phase("first look at all images"):
        look = look_at_all(session.inputs, start, session.settings, measure)
    if look.source is not served[0]:
        session.pool.serve(look.source)
    return look


def _refine(session: RefineSession, data: Dataset, state: RefineState, log: RunLog) -> Findings:
    """Iterate until converged, then write the results.

    raises   NoSignalError, with marked results, if the images hold no signal beyond the start
    """
    settings = session.settings
    maps: Maps | None = None
    files = MapFiles()
    log.publish()
    while not (decision := decide(session.history, settings.iter, settings.targetres)).stop:
        signals.check()
        if decision.kind != SOFT and _was_soft(session.history):
            maps = maps or checkpoints.load_maps(session.project)
            signal = look_for_signal(session, data, state, maps)
            if not signal.found:
                more = with_everyone(settings.iter, session.history)
                decision = more or _end_without(signal, session, data, state, maps)
                session.view.say(f"{decision.reason}; going on with all")
        state, maps = _iterate(session, data, state, decision)
        with session.phase("writing maps so far"):
            shown = maps if signal_is_shown(session.history) else preliminary(maps)
            files.write(session.project, session.inputs, data, shown, state.iteration)
            log.publish()
    session.view.say(decision.reason)
    maps = maps or checkpoints.load_maps(session.project)
    if _was_soft(session.history) or all(step.kind != SOFT for step in session.history):
        signal = look_for_signal(session, data, state, maps)
        if not signal.found:
            _end_without(signal, session, data, state, maps)
    with session.phase("writing results"):
        findings = _look(session, data, state, maps, finished=True)
        exports.write_all(session.project, session.inputs, session.settings, data, state, findings)
    _summarise(session, maps, findings)
    return findings


def _was_soft(history: Sequence[FinishedIteration]) -> bool:
    return bool(history) and history[-1].kind == SOFT


def _look(
    session: RefineSession, data: Dataset, state: RefineState, maps: Maps, *, finished: bool
) -> Findings:
    """Return the alarms that are sure now, and what they rest on."""
    start = alarms.starting_model(session.inputs, session.settings, data.symmetry)
    return alarms.look(data, state, maps, session.history, start, finished=finished)


def _end_without(
    signal: Signal, session: RefineSession, data: Dataset, state: RefineState, maps: Maps
) -> NoReturn:
    """Write the results, marked as those of a run that has found no signal.

    raises   NoSignalError
    """
    start = dataset.lowpass_of(session.inputs, session.settings, len(data.symmetry))
    with session.phase("writing results"):
        marked = replace(maps, mark=NO_SIGNAL)
        findings = replace(_look(session, data, state, marked, finished=True), alarms=())
        exports.write_all(session.project, session.inputs, session.settings, data, state, findings)
    raise NoSignalError(signal.verdict(start, str(session.project.path)))


def _iterate(
    session: RefineSession, data: Dataset, state: RefineState, decision: NextIteration
) -> tuple[RefineState, Maps]:
    """One iteration: align and insert on the workers, solve on rank 0, commit."""
    started = time.monotonic()
    session.after = seconds_after(
        session.history, decision.kind, session.seconds, session.settings.iter
    )
    work = weigh_poses if decision.kind == SOFT else _find_poses
    state, maps, radius, statistics = work(session, data, state, decision)
    complete = radius == largest_radius(data.geometry.box)
    session.history.append(
        FinishedIteration(
            state.resolution,
            state.jumped,
            decision.kind,
            complete,
            state.evidence,
            float(state.peak.mean()),
            state.drift,
            decision.kind != SOFT or decision.everyone or not subsets.is_large(data),
        )
    )
    with session.phase("saving"), signals.postponed():
        checkpoints.commit(session.project, data.geometry, state, maps, session.history)
        _prune(session)
    session.after = None
    session.seconds[decision.kind] = time.monotonic() - started
    _report(session, state, decision.kind, statistics)
    if alarms.search_has_just_ended(session.history):
        for alarm in _look(session, data, state, maps, finished=False).alarms:
            session.view.say(f"warning: {alarm}")
    return state, maps


def _prune(session: RefineSession) -> None:
    """Give up iterations that the settings do not keep; a resumed run needs the first and last."""
    if session.settings.keep != KEEP_ALL:
        numbers = [info.number for info in session.project.commits()]
        session.project.prune(superfluous(numbers, int(session.settings.keep), KEEP_EVERY))


def _find_poses(
    session: RefineSession, data: Dataset, state: RefineState, decision: NextIteration
) -> Iterated:
    """Do an iteration in which each particle has one pose, the best of all or near its last."""
    plan = plan_search(
        data.sampling,
        state.resolved_shell,
        exhaustive=decision.kind == SEARCH,
        free_scale=state.iteration == 0,
        doubtful=state.iteration > 0 and float(state.peak.mean()) < iteration.CLEAR,
    )
    searches = sum(step.kind == SEARCH for step in session.history)
    with session.phase("preparing references"):
        stage = iteration.align_stage(data, state, plan, complete=decision.complete)
        shared = iteration.shared_arrays(data, state, plan)
        tasks = iteration.align_tasks(
            data, dataset.ctf_of(session.inputs.particles), state, stage.insertion_radius
        )
    with session.phase("searching" if plan.exhaustive else "local refinement"):
        outcome = session.run(
            f"iteration {state.iteration + 1}: {'search' if plan.exhaustive else 'local'}",
            stage,
            shared,
            tasks,
            state.resolution,
        )
    del shared  # may be as large as the sums
    with session.phase("reconstruction"):
        state, maps = iteration.next_state(data, state, stage, outcome, searches)
    return state, maps, stage.insertion_radius, outcome.statistics


def _report(
    session: RefineSession,
    state: RefineState,
    kind: str,
    statistics: StageStatistics,
) -> None:
    session.view.iteration(
        {
            "iteration": state.iteration,
            "search": kind,
            "resolution A": state.resolution,
            "moved %": 100.0 * state.jumped,
            "stolen": statistics.tasks_stolen,
            "served MB": statistics.bytes_served / MEGABYTE,
            "time": duration(session.seconds[kind]),
        }
    )


def _summarise(session: RefineSession, maps: Maps, findings: Findings) -> None:
    view, geometry = session.view, session.inputs
    view.phase("")
    inside, everywhere = exports.resolutions(maps, geometry.box, geometry.pixel_size)
    limit = exports.limit_of_pixels(maps, geometry.box, geometry.pixel_size)
    view.say(
        f"resolution {inside:.2f} A (FSC 0.143 inside the mask; {everywhere:.2f} A without one)"
        + (f": {limit}" if limit else "")
    )
    for line in findings.block():
        view.say(line)
    view.say(f"results in {session.project.path}: {', '.join(exports.NAMES)}")
    total = sum(session.clock.spent.values())
    for name, seconds in session.clock.spent.items():
        view.say(f"  {name:<28} {seconds:8.1f} s  {seconds / total:5.0%}")
