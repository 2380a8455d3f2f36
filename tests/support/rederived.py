"""The last iteration of a refinement computed again from docs/methods.md, with numpy alone.

Nothing of mpipar is used: files are read byte by byte, transforms are whole, sums are float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

Numbers = NDArray[Any]


def mrc_values(path: Path) -> Numbers:
    """The values of an MRC file of mode 2, without extended header: (z, y, x)."""
    raw = path.read_bytes()
    x, y, z, mode = np.frombuffer(raw[:16], "<i4")
    assert mode == 2
    return np.frombuffer(raw, "<f4", x * y * z, 1024).reshape(z, y, x).astype(float)


def star_columns(path: Path) -> dict[str, list[str]]:
    """The columns of all tables of a plain STAR file, by label."""
    found: dict[str, list[str]] = {}
    labels: list[str] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if line.startswith(("data_", "loop_")):
            labels = []
        elif line.startswith("_"):
            labels.append(words[0][1:])
        elif words and not line.startswith("#"):
            for label, word in zip(labels, words, strict=True):
                found.setdefault(label, []).append(word)
    return found


def transform(images: Numbers, dimensions: int = 2) -> Numbers:
    """Fourier transforms about the middle, zero frequency in the middle."""
    axes = tuple(range(-dimensions, 0))
    centred = np.fft.ifftshift(images, axes=axes)
    return np.fft.fftshift(np.fft.fftn(centred, axes=axes), axes=axes)


def soft(distance: Numbers, radius: float) -> Numbers:
    """1 up to the radius, 0 from 5 pixels farther, a cosine between."""
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * np.clip((distance - radius) / 5, 0, 1)))


def corners(points: Numbers, middle: int) -> list[tuple[tuple[Numbers, ...], Numbers]]:
    """The eight voxels about each point (m, 3) x y z, as indices z y x, and their shares."""
    low = np.floor(points).astype(int)
    part = points - low
    found: list[tuple[tuple[Numbers, ...], Numbers]] = []
    for corner in itertools.product((0, 1), repeat=3):
        share = np.prod(np.where(corner, part, 1 - part), axis=1)
        places = (low + corner + middle).T
        found.append(((places[2], places[1], places[0]), share))
    return found


def turned(vector: Numbers) -> Numbers:
    """The rotation (3, 3) about a vector, by its length in radians."""
    angle = float(np.linalg.norm(vector))
    x, y, z = np.asarray(vector) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def falloff_of(box: int) -> Numbers:
    """By what trilinear interpolation of the doubled transform weakens a volume (z, y, x)."""
    one = np.sinc((np.arange(box) - box // 2) / (2 * box)) ** 2
    return np.asarray(one[:, None, None] * one[:, None] * one)


@dataclass(frozen=True)
class Rederived:
    """A run of plain input: one optics group, no symmetry, normalised images."""

    run: Path
    star: Path
    stack: Path
    diameter: float
    seed: int = 0

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        return star_columns(self.star)

    @cached_property
    def pixel_size(self) -> float:
        return float(self.columns["rlnImagePixelSize"][0])

    @cached_property
    def _commits(self) -> dict[int, tuple[dict[str, Numbers], dict[str, Any]]]:
        return {}

    def commit(self, number: int) -> tuple[dict[str, Numbers], dict[str, Any]]:
        """Arrays and attributes of a commit; -1 is the last one."""
        if number not in self._commits:
            path = sorted((self.run / "segments").glob("commit-*"))[number]
            with h5py.File(path) as file:
                arrays = {name: item[...] for name, item in file.items()}
                self._commits[number] = arrays, dict(file.attrs)
        return self._commits[number]

    @cached_property
    def images(self) -> Numbers:
        first = self.commit(0)[0]
        return np.asarray(
            (mrc_values(self.stack) - first["offset"][:, None, None]) * first["gain"][:, None, None]
        )

    @cached_property
    def box(self) -> int:
        return len(self.images[0])

    @cached_property
    def axis(self) -> Numbers:
        return np.arange(self.box) - self.box // 2

    @cached_property
    def radius(self) -> float:
        """Of the particle, in pixels."""
        return min(self.diameter / 2 / self.pixel_size, self.box / 2 - 2)

    @cached_property
    def shell(self) -> Numbers:
        """Shell of each component (y, x)."""
        return np.rint(np.hypot(self.axis[:, None], self.axis)).astype(int)

    @cached_property
    def independent(self) -> Numbers:
        """One component of each Friedel pair, without those at Nyquist; up to the last shell."""
        ky, kx = self.axis[:, None], self.axis[None]
        half = (kx > 0) | ((kx == 0) & (ky >= 0))
        known = np.maximum(abs(kx), abs(ky)) < self.box // 2
        return np.asarray(half & known & (self.shell <= self.box // 2))

    @cached_property
    def transfer(self) -> Numbers:
        """Contrast transfer of each particle at each component, (p, y, x)."""
        kilovolt, aberration, contrast = (
            float(self.columns[name][0])
            for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
        )
        volts = 1000 * kilovolt
        long = 12.2643247 / math.sqrt(volts * (1 + 0.978466e-6 * volts))
        u, v, angle = (
            np.array(self.columns[name], float)[:, None, None]
            for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
        )
        ky, kx = self.axis[:, None], self.axis[None]
        squared = (kx**2 + ky**2) / (self.box * self.pixel_size) ** 2
        turn = 2 * (np.arctan2(ky, kx) - np.radians(angle))
        defocus = (u + v) / 2 + (u - v) / 2 * np.cos(turn)
        phase = np.pi * long * defocus * squared
        phase = phase - np.pi / 2 * aberration * 1e7 * long**3 * squared**2
        return np.asarray(np.sin(phase + math.asin(contrast)))

    def moved_back(self, shift: Numbers) -> Numbers:
        """The factors (y, x) that centre a particle."""
        turns = self.axis[None] * shift[0] + self.axis[:, None] * shift[1]
        return np.asarray(np.exp(2j * np.pi * turns / self.box))

    def masked(self, particle: int) -> Numbers:
        """The transform of an image in its disc, about the centre known before."""
        x, y = np.rint(self.commit(-2)[0]["shifts"][particle])
        disc = soft(np.hypot(self.axis[:, None] - y, self.axis - x), self.radius)
        return transform(self.images[particle] * disc)

    @cached_property
    def falloff(self) -> Numbers:
        return falloff_of(self.box)

    def frequencies(self, wanted: Numbers) -> Numbers:
        """(m, 3) kx, ky, 0 of the components where `wanted` (y, x) is true."""
        row, column = np.nonzero(wanted)
        return np.stack([self.axis[column], self.axis[row], 0 * row], axis=1).astype(float)

    @cached_property
    def alignment_radius(self) -> int:
        resolved = int(self.commit(-2)[1]["resolved_shell"])
        return min(max(4, resolved + max(3, round(0.1 * resolved))), self.box // 2)

    @cached_property
    def references(self) -> list[Numbers]:
        """Transforms of the references of the last iteration, doubled by zeros around them."""
        found = []
        for volume in self.commit(-2)[0]["references"]:
            box = len(volume)
            whole = transform(np.pad(volume / falloff_of(box), box // 2), 3)
            whole[0] = whole[:, 0] = whole[:, :, 0] = 0  # its own Nyquist frequency
            found.append(np.pad(whole, 2))
        return found

    def slice_of(self, particle: int, wanted: Numbers, rotation: Numbers | None = None) -> Numbers:
        folds = len(self.references) // 2
        reference = self.references[(self.half[particle] - 1) * folds + self.fold[particle] % folds]
        middle = len(reference) // 2
        if rotation is None:
            rotation = self.commit(-1)[0]["rotations"][particle]
        points = 2 * self.frequencies(wanted) @ rotation.T
        values = [share * reference[at] for at, share in corners(points, middle)]
        return np.asarray(np.sum(values, axis=0))

    @cached_property
    def half(self) -> Numbers:
        """Half sets: those of the list, or drawn."""
        if "rlnRandomSubset" in self.columns:
            return np.array(self.columns["rlnRandomSubset"], np.int8)
        drawn = (np.arange(len(self.images)) % 2 + 1).astype(np.int8)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(0,))
        np.random.default_rng(sequence).shuffle(drawn)
        return drawn

    @cached_property
    def fold(self) -> Numbers:
        """The part of its half set that each particle is in, in the order of the list."""
        found = np.zeros(len(self.half), int)
        for number in (1, 2):
            for part, rows in enumerate(np.array_split(np.flatnonzero(self.half == number), 4)):
                found[rows] = part
        return found

    def first_noise(self) -> Numbers:
        """Noise spectra (2, s) before the first iteration: all power inside the disc."""
        distance = np.hypot(self.axis[:, None], self.axis)
        background = self.images[:, distance > min(self.radius, 0.98 * self.box / 2)]
        centred = self.images - background.mean(axis=1)[:, None, None]
        power = np.abs(transform(centred * soft(distance, self.radius))) ** 2
        return self._spectra(power)

    def _spectra(self, power: Numbers) -> Numbers:
        shells = range(self.box // 2 + 1)
        return np.array(
            [
                [
                    power[self.half == h][:, self.independent & (self.shell == s)].mean()
                    for s in shells
                ]
                for h in (1, 2)
            ]
        )

    def score(self, particle: int, pose: tuple[Numbers, Numbers] | None = None) -> float:
        """Half the log-likelihood of a pose, the last one, against the last references."""
        last = self.commit(-1)[0]
        turn, shift = pose or (last["rotations"][particle], last["shifts"][particle])
        wanted, noise = self.aligned, self.aligned_noise(particle)
        image = (self.masked(particle) * self.moved_back(shift))[wanted]
        model = self.transfer[particle][wanted] * self.slice_of(particle, wanted, turn)
        cross, quadratic = (model.conj() * image).real / noise, np.abs(model) ** 2 / noise
        return float(cross.sum() - quadratic.sum() / 2)

    @cached_property
    def aligned(self) -> Numbers:
        """The components that poses are found by, (y, x)."""
        return np.asarray(
            self.independent & (self.shell > 0) & (self.shell <= self.alignment_radius)
        )

    def aligned_noise(self, particle: int) -> Numbers:
        noise = self.commit(-2)[0]["noise"][self.half[particle] - 1]
        return np.asarray(noise[self.shell[self.aligned]])

    @cached_property
    def covered(self) -> float:
        """Mean of the disc squared."""
        disc = soft(np.hypot(self.axis[:, None], self.axis), self.radius)
        return float((disc**2).mean())

    def precision(self, particle: int) -> Numbers:
        """Of the pose, by the likelihood: (5, 5), turns about the image's axes, then shifts."""
        turn, wanted = self.commit(-1)[0]["rotations"][particle], self.aligned
        small = 1e-6
        by_turn = [
            (
                self.slice_of(particle, wanted, turn @ turned(small * axis))
                - self.slice_of(particle, wanted, turn @ turned(-small * axis))
            )
            / (2 * small)
            for axis in np.eye(3)
        ]
        here = self.slice_of(particle, wanted)
        k = self.frequencies(wanted)
        by_shift = [-2j * np.pi / self.box * k[:, axis] * here for axis in (0, 1)]
        slopes = np.array(by_turn + by_shift) * self.transfer[particle][wanted]
        slopes = slopes / np.sqrt(self.aligned_noise(particle))
        return np.asarray(2 * self.covered * (slopes.conj() @ slopes.T).real)

    @cached_property
    def deviates(self) -> Numbers:
        number = int(self.commit(-1)[1]["iteration"])
        sequence = np.random.SeedSequence(self.seed, spawn_key=(number, 2))
        drawn = np.random.default_rng(sequence).normal(size=(16, 5))
        both = np.concatenate([drawn, -drawn])
        return np.asarray(both @ np.linalg.inv(np.linalg.cholesky(both.T @ both / 32)).T)

    def poses(self, particle: int) -> list[tuple[float, Numbers, Numbers]]:
        """Weight, rotation and shift of the poses at which a particle is in the half map."""
        last = self.commit(-1)[0]
        turn, shift = last["rotations"][particle], last["shifts"][particle]
        widest = np.array([math.radians(15)] * 3 + [3, 3])
        covariance = np.linalg.inv(self.precision(particle) + np.diag(widest**-2.0))
        variances = np.diag(covariance)
        way = math.sqrt(0.4 * self.radius**2 * variances[:3].sum() + variances[3:].sum())
        if way * self.alignment_radius / self.box < 0.15:
            return [(1.0, turn, shift)]
        steps = self.deviates @ (1.15 * np.linalg.cholesky(covariance)).T
        found = [(turn @ turned(step[:3]), shift + step[3:]) for step in steps]
        likely = [2 * self.covered * self.score(particle, pose) for pose in found]
        weight = np.array(likely) + 0.5 * (self.deviates**2).sum(axis=1)
        weight = np.exp(weight - weight.max())
        kept = np.flatnonzero(weight > 1e-3 * weight.sum())
        return [(weight[n] / weight[kept].sum(), *found[n]) for n in kept]

    def noise(self) -> Numbers:
        """Noise spectra (2, s) that the last iteration leaves."""
        wanted = self.independent & (self.shell <= self.alignment_radius)
        shifts = self.commit(-1)[0]["shifts"]
        power = []
        for particle, shift in enumerate(shifts):
            residual = self.masked(particle)
            model = self.transfer[particle][wanted] * self.slice_of(particle, wanted)
            residual[wanted] -= model * self.moved_back(shift)[wanted].conj()
            power.append(np.abs(residual) ** 2)
        return self._spectra(np.array(power))

    @cached_property
    def sums(self) -> list[tuple[Numbers, Numbers]]:
        """Numerator and weight of each half map: every component goes in with its mate."""
        middle = self.box + 2
        shape = (2 * middle + 1,) * 3
        before = self.commit(-2)[0]
        points = 2 * self.frequencies(self.independent)
        once = np.where(points.any(axis=1), 1.0, 0.5)  # zero frequency is its own mate
        found = [(np.zeros(shape, complex), np.zeros(shape)) for _ in (1, 2)]
        for particle, number in enumerate(self.half):
            image = transform(self.images[particle])
            weight = once / before["noise"][number - 1][self.shell[self.independent]]
            ctf = self.transfer[particle][self.independent]
            numerator, weights = found[number - 1]
            for share_of_pose, rotation, shift in self.poses(particle):
                whole = (image * self.moved_back(shift))[self.independent]
                value = share_of_pose * ctf * whole * weight
                turned_points = points @ rotation.T
                for sign, part in ((1, value), (-1, value.conj())):
                    for at, share in corners(sign * turned_points, middle):
                        np.add.at(numerator, at, share * part)
                        np.add.at(weights, at, share * share_of_pose * ctf**2 * weight)
        return found

    def solved(self, sums: tuple[Numbers, Numbers], correlation: Numbers | None) -> Numbers:
        """The map of sums, with the Wiener term of a curve, or with 0.001 of the mean weight."""
        numerator, weight = (array[2:-3, 2:-3, 2:-3] for array in sums)
        k = (np.arange(2 * self.box) - self.box) / 2
        distance = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
        shell = np.rint(distance).astype(int)
        inside = (shell <= self.box // 2) & (k[:, None, None] > k[0]) & (k[:, None] > k[0])
        inside &= k > k[0]  # the doubled transform's own Nyquist
        mean = np.bincount(shell[inside], weight[inside]) / np.bincount(shell[inside])
        held = None if correlation is None else np.clip(correlation, 0.001, 0.999)
        term = np.full(len(mean), 0.001) if held is None else (1 - held) / held
        whole = np.zeros(weight.shape, complex)
        whole[inside] = numerator[inside] / (weight[inside] + (mean * term)[shell[inside]])
        volume = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(whole))).real
        inner = slice(self.box // 2, self.box // 2 + self.box)
        return np.asarray(volume[inner, inner, inner] / self.falloff)

    def correlation(self, first: Numbers, second: Numbers) -> Numbers:
        """FSC, shells 0 to n // 2."""
        k = np.fft.fftfreq(self.box, 1 / self.box)
        shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)
        one, two = np.fft.fftn(first), np.fft.fftn(second)
        cross, power1, power2 = (
            np.bincount(shell.ravel(), values.ravel())[: self.box // 2 + 1]
            for values in ((one * two.conj()).real, np.abs(one) ** 2, np.abs(two) ** 2)
        )
        return np.asarray(cross / np.sqrt(power1 * power2))

    def corrected(self, unmasked: Numbers, masked: Numbers) -> Numbers:
        """The masked FSC without what the mask does to random phases."""
        cut = next(s for s in range(2, len(unmasked)) if unmasked[s] < 0.8)
        number = int(self.commit(-1)[1]["iteration"])
        sequence = np.random.SeedSequence(self.seed, spawn_key=(number, 1))
        generator = np.random.default_rng(sequence)
        k, kx = np.fft.fftfreq(self.box, 1 / self.box), np.arange(self.box // 2 + 1)
        change = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + kx**2)) >= cut
        mask, scrambled = mrc_values(self.run / "mask.mrc"), []
        for half in (1, 2):
            volume = mrc_values(self.run / f"half{half}.mrc")
            changed = np.fft.rfftn(volume)
            turns = generator.random(np.count_nonzero(change), dtype=np.float32)
            changed[change] = np.abs(changed[change]) * np.exp(2j * np.pi * turns)
            scrambled.append(np.fft.irfftn(changed, s=volume.shape, axes=(0, 1, 2)) * mask)
        by_mask = np.maximum(self.correlation(*scrambled), 0.0)
        corrected = np.array(masked)
        late = slice(cut + 2, None)
        corrected[late] = np.maximum((masked - by_mask)[late] / (1 - by_mask[late]), 0)
        return corrected
