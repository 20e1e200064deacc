"""What rephrasing reads besides the documents: quality scores, the held-out split, which words are common."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from synth.config import RephraseConfig
from synth.corpus import open_corpus
from synth.errors import UserError, first_line
from synth.identity import content_hash, file_digest
from synth.keywords import COMMON_WORD_DOCUMENTS, find_common_words
from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import words_of
from synth.recipe import Recipe
from synth.storage import is_local, list_names, patiently, read_parquet, study_path

READERS = 16
"""Files of quality scores looked at at once."""


def held_out_corpora(config: RephraseConfig) -> dict[str, tuple[list[UPath], dict[str, Any]]]:
    """Return parts and manifest of every held-out split to compare with, by corpus. Raises IncompleteArtefact."""
    names = (config.corpus,) if config.decontaminate_against is None else config.decontaminate_against
    return {name: open_corpus(config.root, name, "held_out") for name in names}


def index_held_out(parts: Sequence[str]) -> NgramIndex | None:
    """Return the 13-grams of held-out parts (paths or URLs), None when there is no part."""
    return NgramIndex(words_of(text) for text in _texts(parts)) if parts else None


def common_words_of(sources: Sequence[str], recipes: Sequence[Recipe]) -> frozenset[str]:
    """Return the words too common in a corpus to be keywords; none are looked for where no recipe asks for keywords.

    They are counted in the first COMMON_WORD_DOCUMENTS documents, which are those of the lowest ids, a random draw.
    """
    if not any("keywords" in recipe.placeholders for recipe in recipes):
        return frozenset()
    texts = []
    for text in _texts(sources):
        texts.append(text)
        if len(texts) == COMMON_WORD_DOCUMENTS:
            break
    return find_common_words(texts)


def quality_fingerprint(config: RephraseConfig) -> dict[str, str]:
    """Return the identity of the quality scores, by role; {} without any. Raises UserError when there are none."""
    if config.quality_scores is None:
        return {}
    directory = study_path(config.quality_scores)
    names = list_names(directory, ".parquet")
    if not names:
        raise UserError(
            f"quality_scores = {config.quality_scores!r} holds no .parquet file: give a directory with one file for every "
            f"part of corpora/{config.corpus}/train, of the same name, with columns doc_id and quality."
        )
    return {"quality_scores": content_hash(_versions(directory, names))}


def check_scores_cover(config: RephraseConfig, part_names: Sequence[str]) -> None:
    """Raise UserError when a part that is to be rephrased has no file of quality scores.

    Found out at that part it would be too late: the files are part of the set's identity, and one more makes another set.
    """
    if config.quality_scores is None:
        return
    have = set(list_names(study_path(config.quality_scores), ".parquet"))
    missing = [name for name in part_names if name not in have]
    if missing:
        raise UserError(
            f"quality_scores = {config.quality_scores!r} lacks {len(missing)} of {len(part_names)} parts ({missing[0]} first): score "
            "them before the set is begun."
        )


def _versions(directory: UPath, names: Sequence[str]) -> dict[str, str]:
    """Return what tells each file from another of the same name: the ETag of its store's listing, else a digest of it."""
    tags: dict[str, str] = {}
    if not is_local(directory):
        found = patiently(directory, lambda: directory.fs.find(directory.path, maxdepth=1, detail=True))
        infos = {posixpath.basename(path): info for path, info in found.items()}
        tags = {
            name: str(tag) for name in names if (tag := infos[name].get("ETag") or infos[name].get("etag"))
        }
    rest = [name for name in names if name not in tags]
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(lambda name: patiently(directory, lambda: file_digest(directory / name)), rest)
        return tags | dict(zip(rest, digests, strict=True))


def attach_quality(documents: pa.Table, config: RephraseConfig, part_name: str) -> pa.Table:
    """Return documents with a column `quality`, if the configuration has scores.

    Raises UserError when a document has no score or one that is not in [0, 1].
    """
    if config.quality_scores is None:
        return documents
    path = study_path(config.quality_scores) / part_name
    try:
        scores = read_parquet(path, ["doc_id", "quality"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"quality_scores: {path} cannot be read ({first_line(error)}): it needs columns doc_id and quality."
        ) from None
    known = dict(
        zip(
            scores["doc_id"].to_pylist(),
            pc.cast(scores["quality"], pa.float64()).to_pylist(),
            strict=True,
        )
    )
    values = [known.get(doc_id) for doc_id in documents["doc_id"].to_pylist()]
    for doc_id, value in zip(documents["doc_id"].to_pylist(), values, strict=True):
        if value is None or math.isnan(value) or not 0 <= value <= 1:
            raise UserError(
                f"quality_scores: {path} gives document {doc_id} the score {value}: every document needs one in [0, 1]."
            )
    return documents.append_column("quality", pa.array(values, pa.float64()))


def _texts(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        yield from read_parquet(UPath(part), ["text"])["text"].to_pylist()
