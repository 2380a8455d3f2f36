"""Pictures of a result: slices and projections of a map, its FSC curve, and the orientations."""

from __future__ import annotations

from math import isfinite
from textwrap import fill
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

    from mpipar.cryoem.orientation_spread import DirectionalResolution

__all__ = ["orientation_picture", "picture", "score_picture", "slices_picture"]

THRESHOLD: Final = 0.143  # of the FSC between independent half maps
VIEWS: Final = ("along z", "along y", "along x")  # axis of the array 0, 1, 2
FEW_VIEWS: Final = 5  # in a cell of the map of views
SURFACE: Final = "#fcfcfb"
INK: Final = "#1f1f1e"
QUIET: Final = "#6f6e69"
CURVES: Final = ("#2a78d6", "#1baf7a", "#eda100", "#008300")


def picture(
    path: Path,
    volume: NDArray[np.float32],
    pixel_size: float,
    fsc: Mapping[str, Sequence[float] | NDArray[Any]],
    resolution: float,
    *,
    title: str = "",
) -> None:
    """Write a PNG: three central slices, three projections, and the FSC.

    path         of the PNG
    volume       (n, n, n) float32, axes z y x
    pixel_size   A
    fsc          curve by its name; each (s,), entry k at the frequency k / (n * pixel_size)
    resolution   A; marked on the curve; 0: none is
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK}):
        figure = Figure(figsize=(12.0, 6.4), facecolor=SURFACE, layout="constrained")
        FigureCanvasAgg(figure)
        maps, curve = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.45, 1.0))[0]
        _draw_maps(maps, volume, pixel_size)
        _draw_fsc(curve.subplots(), fsc, 1 / (volume.shape[0] * pixel_size), resolution)
        if title:
            figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        figure.savefig(path, dpi=120, format="png")


def slices_picture(file: BinaryIO, volume: NDArray[np.float32], pixel_size: float) -> None:
    """Write a PNG: the three central slices of a volume.

    volume       (z, y, x), axes z y x
    pixel_size   A, for the scale bar; NaN: there is none
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(9.0, 3.3), facecolor=SURFACE, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3)
        for axis, (panel, view) in enumerate(zip(panels, VIEWS, strict=True)):
            _draw_image(panel, volume.take(volume.shape[axis] // 2, axis=axis))
            panel.set_title(f"central slice {view}", fontsize=10)
        if isfinite(pixel_size):
            _draw_scale_bar(panels[0], volume.shape[-1], pixel_size)
        figure.savefig(file, dpi=100, format="png")


def score_picture(
    path: Path,
    significance: NDArray[np.float64],
    curves: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]],
    *,
    title: str = "",
) -> None:
    """Write a PNG: the histogram of how significantly particles match, and what describes it.

    significance   (p,); may be empty
    curves         by name: a function that returns particles per unit of significance, as a share
                   of all, at significances (n,)
    """
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK}):
        figure = Figure(figsize=(8.0, 4.6), facecolor=SURFACE, layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        highest = max(float(significance.max(initial=0.0)), 10.0) * 1.05
        lowest = min(float(significance.min(initial=0.0)), 0.0)
        bins = np.linspace(lowest, highest, max(20, min(100, len(significance) // 4)))
        panel.hist(significance, bins.tolist(), color="#d3d2cc")
        at = np.linspace(lowest, highest, 1000)
        for (name, density), colour in zip(curves.items(), reversed(CURVES[:3]), strict=False):
            count = density(at) * len(significance) * (bins[1] - bins[0])
            panel.plot(at, count, color=colour, linewidth=2, label=name)
        panel.set_xlim(lowest, highest)
        panel.set_xlabel("significance of a particle's match with its half map")
        panel.set_ylabel("particles")
        panel.spines[["top", "right"]].set_visible(False)
        if curves:
            panel.legend(frameon=False)
        figure.suptitle(fill(title, 90), fontsize=10, x=0.01, ha="left")
        figure.savefig(path, dpi=120, format="png")


def _draw_maps(figure: SubFigure, volume: NDArray[np.float32], pixel_size: float) -> None:
    """Draw two rows of three: slices through the centre, and projections."""
    figure.set_facecolor(SURFACE)
    centre = volume.shape[0] // 2
    rows = (
        ("central slice", [volume.take(centre, axis=axis) for axis in range(3)]),
        ("projection", [volume.sum(axis=axis) for axis in range(3)]),
    )
    axes = figure.subplots(2, 3)
    for across, (name, images) in zip(axes, rows, strict=True):
        for panel, image, view in zip(across, images, VIEWS, strict=True):
            _draw_image(panel, image)
            panel.set_title(f"{name} {view}", fontsize=10, color=INK)
    _draw_scale_bar(axes[1, 0], volume.shape[0], pixel_size)


def _draw_image(panel: Axes, image: NDArray[np.float32]) -> None:
    import numpy as np

    low, high = np.percentile(image, (1.0, 99.8))
    panel.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), origin="lower")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _draw_scale_bar(panel: Axes, box: int, pixel_size: float) -> None:
    """Draw a scale bar of a round length, about a quarter of the box."""
    rounds = [step * 10**power for power in range(5) for step in (1, 2, 5)]
    length = max(
        (size for size in rounds if size <= 0.35 * box * pixel_size), default=box * pixel_size
    )
    left, height = 0.06 * box, 0.06 * box
    panel.plot([left, left + length / pixel_size], [height, height], color="white", linewidth=3)
    panel.text(left, height + 0.03 * box, f"{length:g} Å", color="white", fontsize=10, va="bottom")


def _draw_fsc(
    panel: Axes,
    fsc: Mapping[str, Sequence[float] | NDArray[Any]],
    step: float,
    resolution: float,
) -> None:
    """Draw correlation against frequency, labelled in A, with threshold and resolution."""
    last = 0.0
    for (name, values), colour in zip(fsc.items(), CURVES, strict=False):
        frequencies = [step * k for k in range(len(values))]
        last = max(last, frequencies[-1])
        panel.plot(frequencies, values, color=colour, linewidth=2, label=name)
    panel.axhline(0, color=QUIET, linewidth=0.8)
    panel.axhline(THRESHOLD, color=QUIET, linewidth=1, linestyle="--")
    panel.text(0.01 * last, THRESHOLD + 0.015, f"{THRESHOLD}", color=QUIET)
    if resolution > 0:
        panel.axvline(1 / resolution, color=INK, linewidth=1, linestyle=":")
        panel.annotate(
            f"{resolution:.2f} Å",
            (1 / resolution, 0.5),
            xytext=(6, 0),
            textcoords="offset points",
            fontweight="bold",
        )
    _label_fsc(panel, last, several=len(fsc) > 1)


def _label_fsc(panel: Axes, last: float, *, several: bool) -> None:
    ticks = [last * part / 6 for part in range(1, 7)]
    panel.set_xticks(ticks, [f"{1 / tick:.1f}" for tick in ticks])
    panel.set_xlim(0, last)
    panel.set_ylim(-0.1, 1.02)
    panel.set_xlabel("resolution (Å)")
    panel.set_title("Fourier shell correlation of the half maps", fontsize=10, color=INK)
    panel.set_facecolor(SURFACE)
    panel.tick_params(colors=QUIET, labelcolor=INK)
    panel.grid(color="#e6e5e1", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if several:
        panel.legend(frameon=False, loc="upper right")


def orientation_picture(
    path: Path,
    density: NDArray[np.float32],
    overall: NDArray[np.floating],
    directions: DirectionalResolution,
    width: float,
    *,
    title: str = "",
) -> None:
    """Write a PNG: from where the particles are seen, and the FSC by direction.

    path         of the PNG
    density      (m,) number of views along each cell of a HEALPix grid (ring), mates counted
    overall      (s,) FSC of whole shells
    directions   the FSC by direction
    width        A; entry k of a curve is at the frequency k / width
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK}):
        figure = Figure(figsize=(12.0, 4.8), facecolor=SURFACE, layout="constrained")
        FigureCanvasAgg(figure)
        sphere, panel = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.3, 1.0))[0]
        sphere.set_facecolor(SURFACE)
        _draw_views(sphere, density)
        _draw_directions(panel.subplots(), overall, directions, 1 / width)
        if title:
            figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        figure.savefig(path, dpi=120, format="png")


def _draw_views(figure: SubFigure, density: NDArray[np.float32]) -> None:
    """Draw the density of views, relative to an even one, on a map of the sphere (Mollweide)."""
    import numpy as np

    from mpipar.cryoem import healpix

    cells = 4  # HEALPix resolution: as fine as leaves a few views in each cell
    finest = healpix.resolution_of_cells(density.size)
    while cells < finest and density.sum() > FEW_VIEWS * 12 * (2 * cells) ** 2:
        cells *= 2
    relative = healpix.coarser(density, cells)
    relative /= max(float(relative.mean()), 1e-12)
    longitude, latitude = np.linspace(-180, 180, 361), np.linspace(-90, 90, 181)
    rot, up = np.meshgrid(np.radians(longitude[:-1] + 0.5), np.radians(latitude[:-1] + 0.5))
    towards = np.stack([np.cos(up) * np.cos(rot), np.cos(up) * np.sin(rot), np.sin(up)], axis=-1)
    seen = relative[healpix.cell_of(cells, towards)]
    panel = figure.add_subplot(projection="mollweide")
    drawn = panel.pcolormesh(
        np.radians(longitude), np.radians(latitude), seen, cmap="viridis", vmin=0, rasterized=True
    )
    panel.set_title("from where the particles are seen (rot across, tilt 0 at the top)", color=INK)
    panel.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    panel.set_yticks(np.radians([60, 30, 0, -30, -60]), ["30°", "60°", "90°", "120°", "150°"])
    panel.tick_params(colors=QUIET, labelsize=8)
    panel.grid(color="#ffffff", linewidth=0.3, alpha=0.5)
    bar = figure.colorbar(drawn, ax=panel, orientation="horizontal", shrink=0.6, aspect=35)
    bar.set_label("views, relative to an even spread")


def _draw_directions(
    panel: Axes,
    overall: NDArray[np.floating],
    directions: DirectionalResolution,
    step: float,
) -> None:
    """Draw the FSC of whole shells, the band of those by direction, the best and the worst."""
    import numpy as np

    curves, resolution = directions.curves, directions.resolution
    frequencies = step * np.arange(len(overall))
    known = np.flatnonzero(np.isfinite(curves).all(axis=0))
    panel.fill_between(
        frequencies[known],
        curves[:, known].min(axis=0),
        curves[:, known].max(axis=0),
        color=QUIET,
        alpha=0.2,
        linewidth=0,
        label="all directions",
    )
    chosen = (("best", int(np.argmin(resolution))), ("worst", int(np.argmax(resolution))))
    for (name, row), colour in zip(chosen, CURVES[1:], strict=False):
        label = f"{name} direction, {resolution[row]:.1f} Å"
        panel.plot(frequencies, curves[row], color=colour, linewidth=1.5, label=label)
    panel.plot(frequencies, overall, color=CURVES[0], linewidth=2, label="whole shells")
    panel.axhline(0, color=QUIET, linewidth=0.8)
    panel.axhline(THRESHOLD, color=QUIET, linewidth=1, linestyle="--")
    _label_fsc(panel, float(frequencies[-1]), several=True)
    panel.set_title("FSC of the half maps in cones of 20°", fontsize=10, color=INK)
