"""Pictures of a result: slices and projections of a map, and its FSC curve."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

__all__ = ["picture", "score_picture"]

THRESHOLD: Final = 0.143  # of the FSC between independent half maps
VIEWS: Final = ("along z", "along y", "along x")  # axis of the array 0, 1, 2
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
    resolution   A; marked on the curve
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
