from collections import Counter

import pytest

from synth.assignment import Assignment, heuristic_quality
from synth.recipe import load_recipes

PROSE = (
    "The lighthouse at the northern cape was built in 1871 from grey granite. It has guided ships past the reef ever since, "
    "and its keeper climbed two hundred and twelve steps every evening to light the lamp. When the wind stood in the west, "
    "spray covered the windows of the gallery, and he went out to wipe them with a cloth tied to a pole. Fishermen who came "
    "home late looked for the light before they looked for the harbour. The last keeper left in 1969, when a motor took over "
    "the clockwork, but the brass and the lenses are polished still by people from the village."
)
MENU = "Home | Login | Cart\nHome | Login | Cart\n>> NEXT >> {click} http://x.example\n1 2 3 4 5\nHome | Login | Cart"


def mix(weights, per_document=1, names=("hq", "qa", "faq"), seed=0):
    return Assignment(load_recipes(names), weights, per_document, seed)


def test_without_weights_a_document_goes_through_all_recipes():
    assert mix({}).of("d", None) == (0, 1, 2)


def test_a_mix_follows_its_weights_and_is_a_function_of_the_document():
    rule = mix({"hq": 3.0, "qa": 1.0})
    drawn = [rule.of(f"doc{number}", None) for number in range(4000)]
    counts = Counter(drawn)
    assert counts.keys() == {(0,), (1,)}, "a recipe without weight is not drawn"
    assert counts[(0,)] / 4000 == pytest.approx(0.75, abs=0.03)  # four standard errors
    assert [rule.of(f"doc{number}", None) for number in reversed(range(4000))] == drawn[::-1]
    assert mix({"hq": 3.0, "qa": 1.0}, seed=1).of("doc1", None) in {(0,), (1,)}
    assert [mix({"hq": 3.0, "qa": 1.0}, seed=1).of(f"doc{n}", None) for n in range(50)] != drawn[:50]


def test_several_recipes_are_drawn_without_drawing_one_twice():
    rule = mix({"hq": 1.0, "qa": 1.0, "faq": 1.0}, per_document=2)
    drawn = [rule.of(f"doc{number}", None) for number in range(300)]
    assert all(len(set(recipes)) == 2 and list(recipes) == sorted(recipes) for recipes in drawn)
    assert len(set(drawn)) == 3
    assert mix({"hq": 1.0}, per_document=3).of("d", None) == (0,)


def test_a_recipe_added_to_the_mix_changes_only_the_documents_it_wins():
    before, after = mix({"hq": 1.0, "qa": 1.0}), mix({"hq": 1.0, "qa": 1.0, "faq": 1.0})
    for number in range(300):
        new = after.of(f"doc{number}", None)
        assert new == (2,) or new == before.of(f"doc{number}", None)


def test_the_kinds_of_nemotron_cc_are_routed_by_quality_without_gap_or_overlap():
    names = ("cc_wiki", "cc_diverse_qa", "cc_distill", "cc_extract", "cc_knowledge_list")
    rule = Assignment(load_recipes(names))
    assert rule.needs_quality
    assert rule.of("d", 0.0) == rule.of("d", 0.5999) == (0,)
    assert rule.of("d", 0.6) == rule.of("d", 1.0) == (1, 2, 3, 4)
    assert not mix({}).needs_quality


def test_a_document_no_recipe_takes_has_none():
    assert Assignment(load_recipes(("cc_distill",))).of("d", 0.1) == ()


def test_the_heuristic_puts_prose_above_menus_and_both_in_range():
    assert heuristic_quality(PROSE) > 0.9
    assert heuristic_quality(MENU) < 0.45
    assert heuristic_quality("") == heuristic_quality(" \n ") == 0.0
    for text in ("x" * 100_000, "\x00", "🙂 " * 50, "a\n" * 1000, "雪山很高。" * 30):
        assert 0.0 <= heuristic_quality(text) <= 1.0
    assert heuristic_quality("a\n" * 1000) < 0.6
