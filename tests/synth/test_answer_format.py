import pytest

from synth.quality.answer_format import count_items

TABLE = "| name | year |\n|---|:---:|\n| cape | 1871 |\n| reef | not stated |"


@pytest.mark.parametrize(
    ("shape", "text", "items"),
    [
        ("free", "anything", 1),
        ("question_answer", "Question: Who lit it?\nAnswer: The keeper.\nQuestion: When?\nAnswer: In the evening.", 2),
        ("question_answer", "**Question:** Who lit it?\n**Answer:** The keeper.", 1),
        ("question_answer", "1. Question: Who?\n   Answer: The keeper.", 1),
        ("question_answer", "Q1: Who lit it?\nA1: The keeper.\nQ2: When?\nA2: At dusk.", 2),
        ("question_answer", "Question: Who lit it? Answer: The keeper.", 1),
        ("question_answer", "Question: Who lit it?\nQuestion: When?\nAnswer: At dusk.", 1),
        ("question_answer", "Question: Who lit it?\nAnswer:", 0),
        ("question_answer", "The question: who lit it? Nobody knows the answer.", 0),
        ("question_answer", "An answer to this question is not known. A. Smith asked it.", 0),
        ("list", "- one thing\n- another\n* a third\n4. a fourth", 4),
        ("list", "One sentence - with a dash. 1.5 metres.", 0),
        ("list", "-- not a list\n-10 degrees", 0),
        ("steps", "Build it.\n\n1. Take a lamp.\n2. Fill it.\n3. Light it.", 3),
        ("steps", "## Step 1: Take a lamp\ntext\n## Step 2: Fill it", 2),
        ("steps", "**1. Take a lamp.**\n**2.** Fill it.", 2),
        ("steps", "2. This starts in the middle.\n4. And skips.", 0),
        ("steps", "In 1871 it was built.\n1871 was a wet year.", 0),
        ("table", TABLE, 2),
        ("table", TABLE + "\n\nQuestion: Which is older?\nAnswer: The cape.", 2),
        ("table", "| name | year |\n|---|---|\n| cape |", 0),
        ("table", "| name |\n| --- | --- |\n| a | b |", 0),
        ("table", "a | b\n--|--\n1 | 2", 1),
        ("table", "A sentence | with bars | is no table.", 0),
        ("problem_solution", "Problem: 3 lamps burn 2 l each. How much?\n\nSolution:\n3 x 2 = 6 l.", 1),
        ("problem_solution", "**Problem:** x\n**Solution:** y", 1),
        ("problem_solution", "The problem is solved by a solution of salt.", 0),
    ],
)  # fmt: skip
def test_items_are_counted_in_real_looking_answers_and_not_in_prose(shape, text, items):
    assert count_items(text, shape) == items


@pytest.mark.parametrize("shape", ["question_answer", "list", "steps", "table", "problem_solution"])
def test_nothing_in_a_megabyte_of_one_line_takes_long(shape):
    for text in (
        "x" * 1_000_000,
        "| " * 300_000,
        "- " * 300_000,
        "Question: " * 60_000,
        "*" * 500_000,
        "1. " * 200_000,
    ):
        assert count_items(text, shape) >= 0
