"""Which images hold the particle: told from how significantly each matches its half map.

The significance of a match (`mpipar.cryoem.matches`) is a matched filter's signal-to-noise ratio.
For an image of noise it is the largest of as many standard normal numbers as there are distinct
poses, which grows as slowly as the square root of the logarithm of their number (Sigworth 2004,
Rickgauer et al. 2017). So noise, and all else that is not the particle, lies in one narrow peak
about 6.5, for any particle, box or resolution; images of the particle at the right pose lie above.
That absolute place tells junk from a wide spread of contrast, defocus and views.

The significances of all images are described by a mixture of normal distributions, fitted by
expectation maximisation: the peak of noise, if there is one, and up to two others. How many there
are, and whether noise is among them, the Bayesian information criterion decides (Schwarz 1978). An
image's probability to hold the particle follows by Bayes' rule from the peaks. Junk that has some
shape (another molecule, particles of the wrong sign) lies somewhat above noise. So a peak that is
clearly apart from the particles and much nearer to noise is junk, too.

A real particle whose pose was not found at all looks like noise, too: it does in the map as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.matches import Matches

NOISE_MEANS: Final = (3.3, 7.4)
"""Between these lies the mean significance of noise. Measured on simulated sets: 3.7 and 4.0 for
junk among 200 particles that are matched by folds, 5.3 among 1,200; where images are in their own
reference, 5.2 for an icosahedral particle, 5.3 for D7, 5.9 to 6.5 for C1, up to 7.0 for junk."""
NOISE_DEVIATIONS: Final = (0.35, 1.05)
"""Between these its standard deviation: measured were 0.5 to 1.0."""
APART: Final = 1.5
"""Particles lie at least so far above noise in the mean: else nobody can tell."""
NARROWEST: Final = 0.35
MOST_PEAKS: Final = 2  # besides that of noise
STEP: Final = 0.1  # of the histogram that is fitted
MOST_STEPS: Final = 500
FEWEST_PARTICLES: Final = 30
NEAR_NOISE: Final = 0.25
"""A peak is near to noise if it lies within this part of the way from noise to the particles. Wrong
poses at low signal lie 0.37 of the way up, and half the contrast at half: they are no junk."""
CLEARLY: Final = 2.0
"""Two peaks are clearly apart if their means are farther apart than the sum of their standard
deviations times this."""
FEWEST_GOOD: Final = 0.15
"""The highest peak must hold this share of all to be taken for the particles."""
LITTLE_JUNK: Final = 0.05
"""Shares below this are not put into words: a good set has some wrong poses (2.2 % in a D2 set, all
of them found), and among very many particles the peak of noise also stands for a tail that is no
normal distribution (1.4 % of 200,000)."""
ALL_NOISE: Final = 0.8
"""A set of which more than this share lies in the peak of noise matches like noise as a whole."""
HELD_NOISE: Final = 1.0
"""So does one whose mean significance with the held-out half map is below this: half maps of noise
that agree by chance give less."""


@dataclass(frozen=True)
class ScorePeak:
    """A normal distribution of significance, and the share of all particles that is in it."""

    share: float
    mean: float
    deviation: float

    def density(self, significance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the particles per unit of significance, as a share of all."""
        distance = (significance - self.mean) / self.deviation
        height = self.share / (self.deviation * math.sqrt(2 * math.pi))
        return np.asarray(height * np.exp(-0.5 * distance**2))


def density_of(
    peaks: tuple[ScorePeak, ...], significance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the particles of several peaks per unit of significance, as a share of all."""
    return sum((peak.density(significance) for peak in peaks), np.zeros(len(significance)))


@dataclass(frozen=True)
class ScoreMixture:
    """The peaks that describe all particles; the criterion is lower for a better description."""

    noise: ScorePeak | None
    particles: tuple[ScorePeak, ...]
    criterion: float

    @property
    def junk(self) -> tuple[ScorePeak, ...]:
        """The peak of noise, and those near to it and clearly apart from the highest one."""
        noise = () if self.noise is None else (self.noise,)
        if not self.particles:
            return noise
        highest = max(self.particles, key=lambda peak: peak.mean)
        if highest.share < FEWEST_GOOD:
            return noise
        zero = sum(NOISE_MEANS) / 2 if self.noise is None else self.noise.mean
        limit = zero + NEAR_NOISE * (highest.mean - zero)
        return noise + tuple(
            peak
            for peak in self.particles
            if peak.mean < limit
            and highest.mean - peak.mean > CLEARLY * (highest.deviation + peak.deviation)
        )

    @property
    def good(self) -> tuple[ScorePeak, ...]:
        """All other peaks."""
        return tuple(peak for peak in self.particles if peak not in self.junk)

    @property
    def junk_share(self) -> float:
        """The share of all particles that is in peaks of junk."""
        return sum((peak.share for peak in self.junk), 0.0)

    def junk_probability(self, significance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability that an image is of a peak of junk; never rises upwards."""
        if not self.junk:
            return np.zeros(len(significance))
        # below the lowest peak's mean a wide peak of particles would win again
        at = np.maximum(significance, min(peak.mean for peak in self.junk))
        junk, good = density_of(self.junk, at), density_of(self.good, at)
        total = np.maximum(junk + good, np.finfo(float).tiny)
        return np.asarray(junk / total)


@dataclass(frozen=True)
class ParticleQuality:
    """What the matches say of each particle and of the set.

    significance   (p,) of the match with the own half map, in its standard deviations for noise
    probability    (p,) that the image holds the particle, and not only what noise would match
    junk_share     share of images in peaks of noise, or near to noise; 0 if there is none
    junk_error     its standard error; where there is no such peak, or no other, how large, or how
                   much smaller, the share may be without being noticed
    held_mean      mean significance of matches with the held-out half map; 0 for noise
    held_error     its standard error, if particles were independent of each other
    like_noise     whether the set as a whole matches no better than noise would
    mixture        the peaks
    """

    significance: NDArray[np.float64]
    probability: NDArray[np.float64]
    junk_share: float
    junk_error: float
    held_mean: float
    held_error: float
    like_noise: bool
    mixture: ScoreMixture

    @property
    def median(self) -> float:
        """The median significance."""
        return float(np.median(self.significance))

    def sentence(self) -> str:
        """Return the finding in words; empty if there is no junk."""
        if self.like_noise:
            return self._like_noise()
        if self.junk_share <= max(LITTLE_JUNK, 2 * self.junk_error):
            return ""
        return (
            f"{100 * self.junk_share:.0f} % (+- {max(1, 100 * self.junk_error):.0f}) of the "
            "particles match the map hardly better than noise would, or not at all: they are junk, "
            "or their poses were not found"
        )

    @property
    def in_noise_peak(self) -> bool:
        """Whether nearly all lie where noise does, whatever the held-out half map shows."""
        noise = self.mixture.noise
        return noise is not None and noise.share > ALL_NOISE

    def _like_noise(self) -> str:
        if self.in_noise_peak:
            return (
                "the particles match the map no better than noise would (median significance "
                f"{self.median:.1f}; noise has 4 to 7)"
            )
        return (
            "the particles match the half map that they are not in no better than noise would "
            f"(mean significance {self.held_mean:.1f}; particles have more than 2)"
        )


def particle_quality(matches: Matches, covered: float) -> ParticleQuality | None:
    """Return which particles are junk; None if matches are not known or of too few particles.

    covered   mean square of the disc that images are masked with: so much less noise is in them
    """
    scale = math.sqrt(covered)
    significance = matches.own_significance * scale
    if len(significance) < FEWEST_PARTICLES or not np.all(np.isfinite(significance)):
        return None
    fits = _fits(significance)
    best = fits[0]
    noise_share = 0.0 if best.noise is None else best.noise.share
    held = matches.held_significance * scale
    independent = bool(matches.held_quadratic.any())
    held_mean = float(held.mean())
    return ParticleQuality(
        significance,
        1.0 - best.junk_probability(significance),
        best.junk_share,
        _share_error(fits, significance),
        held_mean,
        float(held.std() / math.sqrt(len(held))),
        noise_share > ALL_NOISE or (independent and held_mean < HELD_NOISE),
        best,
    )


def _fits(significance: NDArray[np.float64]) -> list[ScoreMixture]:
    """Return mixtures with and without noise, and of different numbers of peaks, best first."""
    # a histogram has few entries however many particles there are; what lies far below noise, as an
    # empty image does, would only widen the peaks
    lowest = NOISE_MEANS[0] - 3 * NOISE_DEVIATIONS[0]
    entry = np.floor(np.maximum(significance, lowest) / STEP).astype(np.int64)
    first = int(entry.min())
    counts = np.bincount(entry - first)
    filled = np.flatnonzero(counts)
    middle = np.asarray(STEP * (filled + first + 0.5), np.float64)
    weight = np.asarray(counts[filled], np.float64)
    kinds = [(noise, peaks) for noise in (False, True) for peaks in range(MOST_PEAKS + 1)]
    kinds = [kind for kind in kinds if any(kind)]
    starts = [_first_peaks(middle, weight, *kind) for kind in kinds]
    kinds.append((True, MOST_PEAKS))  # once more: few wrong poses just above noise
    starts.append(_wrong_poses_first(*starts[-1]))
    found = [
        _fit(middle, weight, kind[0], start) for kind, start in zip(kinds, starts, strict=True)
    ]
    return sorted(found, key=lambda mixture: mixture.criterion)


def _fit(
    middle: NDArray[np.float64],
    weight: NDArray[np.float64],
    noise: bool,
    start: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> ScoreMixture:
    """Fit a mixture to a histogram by expectation maximisation.

    middle, weight   (h,) of the histogram's entries
    noise            whether the first peak is that of noise
    start            means and deviations of the peaks to begin with
    """
    total = weight.sum()
    mean, deviation = start
    share = np.full(len(mean), 1.0 / len(mean))
    before = -np.inf
    for _ in range(MOST_STEPS):
        distance = (middle[:, None] - mean) / deviation
        terms = np.log(share / deviation) - 0.5 * distance**2
        highest = terms.max(axis=1)
        density = np.exp(terms - highest[:, None])
        likelihood = float((weight * (highest + np.log(density.sum(axis=1)))).sum())
        if likelihood - before < 1e-8 * total:
            break
        before = likelihood
        part = density / density.sum(axis=1, keepdims=True) * weight[:, None]
        count = np.maximum(part.sum(axis=0), 1e-9)
        share = count / count.sum()
        mean = (part * middle[:, None]).sum(axis=0) / count
        deviation = np.sqrt((part * (middle[:, None] - mean) ** 2).sum(axis=0) / count)
        mean, deviation = _possible(mean, deviation, noise)
    found = [ScorePeak(*map(float, peak)) for peak in zip(share, mean, deviation, strict=True)]
    parameters = 3 * len(found) - 1
    criterion = parameters * math.log(total) - 2 * before
    return ScoreMixture(found[0] if noise else None, tuple(found[noise:]), criterion)


def _first_peaks(
    middle: NDArray[np.float64], weight: NDArray[np.float64], noise: bool, peaks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and deviations to begin with: noise where it lies, others spread over all."""
    total = weight.sum()
    centre = (weight * middle).sum() / total
    spread = math.sqrt((weight * (middle - centre) ** 2).sum() / total)
    quantiles = [(peak + 0.7) / (peaks + 0.2) for peak in range(peaks)]
    at = np.searchsorted(np.cumsum(weight) / total, np.minimum(quantiles, 1.0))
    others = middle[np.minimum(at, len(middle) - 1)].tolist()
    mean = [sum(NOISE_MEANS) / 2] * noise + others
    deviation = [sum(NOISE_DEVIATIONS) / 2] * noise + [spread / 2] * peaks
    return _possible(np.array(mean), np.array(deviation), noise)


def _wrong_poses_first(
    mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the start with its first peak of particles narrow and just above noise."""
    mean, deviation = mean.copy(), deviation.copy()
    mean[1], deviation[1] = mean[0] + APART, deviation[0]
    return mean, deviation


def _possible(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], noise: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Keep the peak of noise where noise lies, and the others above it."""
    deviation = np.maximum(deviation, NARROWEST)
    if noise:
        mean[0], deviation[0] = (
            np.clip(mean[0], *NOISE_MEANS),
            np.clip(deviation[0], *NOISE_DEVIATIONS),
        )
        mean[1:] = np.maximum(mean[1:], mean[0] + APART)
        return mean, deviation
    return np.maximum(mean, NOISE_MEANS[1]), deviation


def _share_error(fits: list[ScoreMixture], significance: NDArray[np.float64]) -> float:
    """Return the standard error of the best mixture's share of junk.

    It is that of the best one with noise and other peaks, from the information that each particle
    gives (it grows where the peaks overlap), and at least how far the two mixtures differ.
    """
    count = len(significance)
    mixed = next(fit for fit in fits if fit.noise is not None and fit.particles)
    share = min(mixed.junk_share, 1.0)
    tiny = np.finfo(float).tiny
    junk = density_of(mixed.junk, significance) / max(share, 1e-9)
    good = density_of(mixed.good, significance) / max(1.0 - share, 1e-9)
    slope = (junk - good) / np.maximum(share * junk + (1.0 - share) * good, tiny)
    error = 1.0 / math.sqrt(max(float((slope**2).sum()), 1.0))
    if share * count < 1.0:  # none of them: the information tells nothing
        error = 1.0 / count
    return float(min(1.0, max(error, abs(fits[0].junk_share - share))))
