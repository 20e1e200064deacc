"""What a piece of a docstring says, whichever way its fields are written and wherever it was cut."""

import pytest

from synth.docstring_parts import Field, Sentence, parts_of

NUMPY = """Compute the mean along an axis. See [1]_.

Parameters
----------
a : array_like
    Array whose ``mean`` is wanted.  It is
    not changed.
axis : int, optional

Returns
-------
ndarray
    The means.

Examples
--------
>>> mean([1, 2])
1.5
"""


def test_numpydoc_fields_are_read_with_their_types_and_code_is_no_part():
    assert parts_of(NUMPY) == (
        Sentence("Compute the mean along an axis."),
        Sentence("See."),
        Field("parameter", "a", "array_like", ("Array whose `mean` is wanted.", "It is not changed.")),
        Field("parameter", "axis", "int, optional", ()),
        Field("result", "", "ndarray", ("The means.",)),
    )


GOOGLE = """Save a model.

Args:
    path (str, *optional*): Where to
        write it.
    overwrite: Whether to replace a file.

Returns:
    The path, absolute.

Raises:
    OSError: If the disk is full.
"""


def test_google_style_fields_are_read():
    assert parts_of(GOOGLE) == (
        Sentence("Save a model."),
        Field("parameter", "path", "str, optional", ("Where to write it.",)),
        Field("parameter", "overwrite", "", ("Whether to replace a file.",)),
        Field("result", "", "", ("The path, absolute.",)),
        Field("error", "OSError", "", ("If the disk is full.",)),
    )


def test_restructuredtext_fields_are_read():
    text = ":param int width: columns of the table\n:returns: the :class:`~x.Table`\n:raises ValueError: if it is 0"
    assert parts_of(text) == (
        Field("parameter", "width", "int", ("columns of the table",)),
        Field("result", "", "", ("the `x.Table`",)),
        Field("error", "ValueError", "", ("if it is 0",)),
    )


def test_a_piece_cut_out_of_the_middle_still_has_its_fields():
    assert parts_of("of the rows.\n\nstep : float\n    Distance of two rows") == (
        Sentence("of the rows."),
        Field("parameter", "step", "float", ("Distance of two rows",)),
    )


@pytest.mark.parametrize(
    "text",
    ["", "\n \n", ">>> f(1)\n2", "```python\nx = 1\n```", "| a | b |\n+---+---+", ".. code::\n\n    x = 1\n"],
)
def test_nothing_is_asked_about_code_and_tables(text):
    assert parts_of(text) == ()


def test_emphasis_and_abbreviations_do_not_end_a_sentence():
    text = "A *local bridge* is an edge, e.g. Of a tree. It has no other path."
    assert [part.text for part in parts_of(text)] == [
        "A *local bridge* is an edge, e.g. Of a tree.", "It has no other path."
    ]  # fmt: skip
