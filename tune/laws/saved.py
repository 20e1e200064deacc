"""Fits on disk: `fit.json` for people and other programs, `bootstrap.npz` for predictions with intervals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from upath import UPath

from synth.identity import read_manifest
from synth.storage import read_bytes, study_path, write_bytes_atomic
from tune.laws.fitted import FittedLaw
from tune.laws.registry import law_named
from tune.results import FitFile

FIT_FILE = "fit.json"
SAMPLES_FILE = "bootstrap.npz"


@dataclass(frozen=True, eq=False)
class SavedLaws:
    """All fits of one `fit_laws` job, ready to predict."""

    file: FitFile
    fits: tuple[FittedLaw, ...]

    def __iter__(self) -> Iterator[FittedLaw]:
        return iter(self.fits)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups (mixtures) with at least one fit, in the order of the file."""
        return tuple(dict.fromkeys(fitted.record.group for fitted in self.fits))

    def find(self, law: str, group: str) -> FittedLaw | None:
        """Return the fit of a law to a group; None if there is none."""
        matches = (fitted for fitted in self.fits if (fitted.record.law, fitted.record.group) == (law, group))
        return next(matches, None)


def load_fit(root: str, name: str = "laws") -> SavedLaws:
    """Return the fits of `laws/<name>` under a study root. Raises IncompleteArtefact if they are not finished."""
    return load_directory(study_path(root, "laws", name))


def load_directory(directory: UPath) -> SavedLaws:
    """Return the fits in a directory that `fit_laws` wrote, such as its `--out`."""
    read_manifest(directory, "fit_laws")
    file = FitFile.model_validate_json(read_bytes(directory / FIT_FILE))
    with np.load(io.BytesIO(read_bytes(directory / SAMPLES_FILE)), allow_pickle=False) as arrays:
        samples = [arrays[_key(index)] for index in range(len(file.fits))]
    pairs = zip(file.fits, samples, strict=True)
    return SavedLaws(
        file, tuple(FittedLaw(law_named(record.law, record.shares), record, drawn) for record, drawn in pairs)
    )


def save_samples(directory: UPath, fits: tuple[FittedLaw, ...]) -> None:
    """Write the resampled parameters of each fit, [bootstrap_samples, p], in the order of `fit.json`."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_key(index): fitted.samples for index, fitted in enumerate(fits)})
    write_bytes_atomic(directory / SAMPLES_FILE, buffer.getvalue())


def _key(index: int) -> str:
    return f"fit_{index:04d}"
