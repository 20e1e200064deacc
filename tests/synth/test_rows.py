"""From documents to requests and from outcomes to rows: exact small cases."""

import pyarrow as pa
import pytest

from synth.documents import DOCUMENT_SCHEMA
from synth.drafts import draft_rows, prepare_recipe, row_seed
from synth.engines.fake import CharacterTokenizer
from synth.engines.protocol import GenerationResult
from synth.engines.supervisor import Quarantined
from synth.errors import UserError
from synth.keywords import draw_keywords, find_common_words
from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import words_of
from synth.recipe import load_recipe
from synth.rows import REPHRASED_SCHEMA, Provenance, tally_rows
from tests.synth.conftest import table_of

TOKENIZER = CharacterTokenizer()
PROVENANCE = Provenance("m", "c0ffee", "h", "fake 1")
TEXT = "The reef lies north of the cape. Ships keep away from it. The lamp is lit every evening."


def table(*texts):
    rows = [
        {"doc_id": f"d{at}", "text": text, "domain": "sea", "source": "test"} for at, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def prepared(name="hq", max_model_len=4096, **overrides):
    return prepare_recipe(load_recipe(name, overrides), TOKENIZER, max_model_len)


def drafts_of(texts, recipes, **options):
    return draft_rows(table(*texts), recipes, TOKENIZER, **{"seed": 0, "samples_per_chunk": 1} | options)


def answer(text="A reef lies to the north, and a lamp warns ships each evening.", finish_reason="stop"):
    return GenerationResult(text, finish_reason, None, 10, 4, len(text), 0.1)


def test_rows_come_in_the_order_document_chunk_recipe_sample():
    short = {"chunking": {"unit": "characters", "max_length": 60}}
    drafts = drafts_of(
        [TEXT, "One more."], [prepared("qa", **short), prepared("hq", **short)], samples_per_chunk=2
    )
    keys = [draft.key for draft in drafts]
    assert keys == [
        "d0/0/qa/0", "d0/0/qa/1", "d0/0/hq/0", "d0/0/hq/1", "d0/1/qa/0", "d0/1/qa/1", "d0/1/hq/0", "d0/1/hq/1",
        "d1/0/qa/0", "d1/0/qa/1", "d1/0/hq/0", "d1/0/hq/1",
    ]  # fmt: skip
    assert [TEXT[draft.span.start : draft.span.end] for draft in drafts[:8:4]] == [
        draft.chunk_text for draft in drafts[:8:4]
    ]


def test_a_seed_belongs_to_its_row_and_to_nothing_else():
    assert row_seed(0, "d", 1, "hq", 2) == row_seed(0, "d", 1, "hq", 2)
    others = [
        row_seed(*key)
        for key in [
            (1, "d", 1, "hq", 2),
            (0, "e", 1, "hq", 2),
            (0, "d", 2, "hq", 2),
            (0, "d", 1, "qa", 2),
            (0, "d", 1, "hq", 3),
        ]
    ]
    assert len({row_seed(0, "d", 1, "hq", 2), *others}) == 6
    assert all(0 <= seed < 2**63 for seed in others)
    alone = drafts_of([TEXT], [prepared("hq")])[0]
    among = drafts_of([TEXT, TEXT + " More."], [prepared("qa"), prepared("hq")], samples_per_chunk=3)
    assert alone.seed == next(draft.seed for draft in among if draft.key == alone.key)


def test_prompts_hold_the_chunk_and_nothing_is_cut_off_a_chunk_in_tokens():
    draft = drafts_of([TEXT], [prepared("hq")])[0]
    assert f"Text:\n{TEXT}\n\nRewritten text:" in "".join(map(chr, draft.prompt_token_ids))
    assert draft.input_truncated_tokens == 0


def test_what_does_not_fit_a_prompt_is_cut_off_and_counted():
    whole = {"chunking": {"unit": "characters", "max_length": 10_000}, "max_input_tokens": 50}
    draft = drafts_of([TEXT], [prepared("hq", **whole)])[0]
    assert draft.input_truncated_tokens == len(TEXT) - 50
    assert TEXT[:50] in "".join(map(chr, draft.prompt_token_ids))
    assert TEXT[:51] not in "".join(map(chr, draft.prompt_token_ids))


def test_a_short_window_shares_its_room_between_chunk_and_answer():
    wide = prepared("hq", max_model_len=10_000)
    assert (wide.max_chunk_length, wide.max_output_tokens) == (512, 768)
    room = 400
    tight = prepared("hq", max_model_len=wide.template.num_tokens + room)
    assert (tight.max_input_tokens, tight.max_output_tokens, tight.max_chunk_length) == (200, 200, 200)
    drafts = drafts_of([TEXT * 20], [tight])
    assert len(drafts) > 5
    longest = max(len(draft.prompt_token_ids) for draft in drafts)
    assert longest + tight.max_output_tokens <= wide.template.num_tokens + room
    assert sum(draft.input_truncated_tokens for draft in drafts) == 0, "shorter chunks, not truncated ones"


def test_keywords_and_domain_take_their_room_from_the_chunk_and_not_from_the_answer():
    both = [{"role": "user", "content": "{domain}: {document}\nUse {keywords}. Again: {document}\n"}]
    window = 400
    tight = prepared("hq", window, messages=both, chunking={"unit": "words", "max_length": 500})
    (draft,) = drafts_of([TEXT * 20], [tight])
    assert draft.keywords
    assert len(draft.prompt_token_ids) + tight.max_output_tokens <= window
    prompt = "".join(map(chr, draft.prompt_token_ids))
    first, second = prompt.split("\nUse ")[0].removeprefix("sea: "), prompt.split("Again: ")[1]
    assert first == second != ""
    assert draft.input_truncated_tokens == len(TEXT * 20) - len(first)


def test_a_window_without_room_is_refused_with_the_numbers():
    with pytest.raises(
        UserError,
        match=r"engine.max_model_len = 300 leaves 0 tokens beside the prompt of recipe 'hq' \(\d+ tokens\)",
    ):
        prepared("hq", max_model_len=300)


def test_a_document_without_text_is_one_rejected_row():
    drafts = drafts_of(["", " \n ", TEXT], [prepared("hq")])
    assert [draft.key for draft in drafts] == ["d0/0/hq/0", "d1/0/hq/0", "d2/0/hq/0"]
    assert [bool(draft.prompt_token_ids) for draft in drafts] == [False, False, True]
    rows = table_of(drafts, [None, None, answer()], PROVENANCE).to_pylist()
    assert [(row["verdict"], row["reject_reasons"]) for row in rows[:2]] == [
        ("rejected", ["empty_input"])
    ] * 2


def test_a_textbook_is_seeded_by_words_of_the_document_only():
    draft = drafts_of([TEXT], [prepared("textbook")])[0]
    prompt = "".join(map(chr, draft.prompt_token_ids))
    assert TEXT not in prompt
    keywords = prompt.split("keywords together: ")[1].split(".\n")[0].split(", ")
    assert len(keywords) == len(set(keywords)) == 8
    assert set(keywords) <= set(TEXT.lower().replace(".", "").split())


def test_keywords_follow_the_seed():
    assert draw_keywords(TEXT, 4, 1) == draw_keywords(TEXT, 4, 1)
    assert len({tuple(draw_keywords(TEXT, 4, seed)) for seed in range(20)}) > 10
    assert draw_keywords("a bb 1234", 4, 0) == []


def test_outcomes_become_rows_with_verdict_and_measures():
    drafts = drafts_of([TEXT] * 4, [prepared("hq")])
    outcomes = [
        answer(), answer("Sure! Here is the rewritten text: " + answer().text), answer("I'm sorry, but I cannot help with that."),
        Quarantined("killed_engine", "it died"),
    ]  # fmt: skip
    result = table_of(drafts, outcomes, PROVENANCE)
    assert result.schema.equals(REPHRASED_SCHEMA)
    kept, stripped, refused, poison = result.to_pylist()
    assert (kept["verdict"], kept["keep"], kept["text"], kept["raw_text"]) == (
        "kept",
        True,
        answer().text,
        None,
    )
    assert (stripped["text"], stripped["raw_text"]) == (
        answer().text,
        "Sure! Here is the rewritten text: " + answer().text,
    )
    assert (refused["verdict"], refused["keep"], refused["is_refusal"]) == ("rejected", False, True)
    assert "refusal" in refused["reject_reasons"]
    assert (poison["verdict"], poison["reject_reasons"], poison["text"]) == (
        "quarantined",
        ["killed_engine"],
        "",
    )
    assert poison["finish_reason"] is None
    assert poison["length_ratio"] is None
    assert (kept["model"], kept["model_revision"], kept["model_hash"]) == ("m", "c0ffee", "h")
    assert (kept["engine_version"], kept["prompt_hash"]) == ("fake 1", drafts[0].prepared.recipe.prompt_hash)


def test_a_tally_accounts_for_every_row_and_token():
    drafts = drafts_of([TEXT] * 4, [prepared("hq")])
    outcomes = [answer(), answer("", "stop"), answer("no " * 30, "length"), Quarantined("too_long", "")]
    result = table_of(drafts, outcomes, PROVENANCE)
    tally = tally_rows(result, drafts, outcomes)["hq"]
    assert (tally.rows, tally.kept, tally.rejected, tally.quarantined) == (4, 1, 2, 1)
    assert tally.completion_tokens == len(answer().text) + 90
    assert tally.accepted_tokens == len(answer().text)
    assert tally.cached_prompt_tokens == 12
    assert tally.finish_reasons == {"stop": 2, "length": 1}
    assert tally.reasons["empty"] == tally.reasons["truncated"] == tally.reasons["too_long"] == 1
    assert tally.source_characters == 4 * len(TEXT)


def test_a_chunk_too_short_to_send_is_a_rejected_row_that_costs_nothing():
    short = {"chunking": {"unit": "characters", "max_length": 60, "min_length": 20}}
    drafts = drafts_of([TEXT, "Too short."], [prepared("hq", **short)])
    assert [draft.skipped for draft in drafts] == [None, None, "chunk_too_short"]
    assert drafts[-1].prompt_token_ids == ()
    (row,) = table_of(drafts[-1:], [None], PROVENANCE).to_pylist()
    assert (row["verdict"], row["reject_reasons"], row["prompt_tokens"]) == (
        "rejected",
        ["chunk_too_short"],
        0,
    )


def test_questions_are_put_behind_their_text_and_judged_without_it():
    recipe = prepared(
        "cc_diverse_qa", chunking={"min_length": 0}, thresholds={"min_words": 5}, routing={"min_quality": 0.0}
    )
    drafts = drafts_of([TEXT], [recipe])
    qa = "Question: Where is the reef?\nAnswer: To the north of the cape."
    kept, refused = (
        table_of(drafts, [answer(text)], PROVENANCE).to_pylist()[0]
        for text in (qa, "The reef lies north of everything.")
    )
    assert kept["text"] == f"{TEXT}\n\n{qa}"
    assert (kept["keep"], kept["words"], kept["format_items"]) == (True, 12, 1)
    assert refused["reject_reasons"] == ["format"]
    assert refused["text"] == "The reef lies north of everything."


def test_words_common_in_the_corpus_are_no_keywords():
    texts = [f"The harbour of {place} has lanterns." for place in ("Alund", "Borgstad", "Cresta", "Dovrin")]
    common = find_common_words(texts)
    assert {"harbour", "lanterns", "the"} <= common
    assert draw_keywords(texts[1], 8, 0, find_common_words(texts * 10 + ["x"] * 400)) == draw_keywords(
        texts[1], 8, 0
    )
    only = find_common_words([*texts, *(f"harbour lanterns {n}" for n in range(36))])
    assert draw_keywords(texts[1], 8, 0, only) == ["borgstad"]


def test_documents_go_only_through_the_recipes_that_take_their_quality():
    recipes = [prepared("cc_wiki"), prepared("cc_distill")]
    scored = table(TEXT * 3, TEXT * 4, TEXT * 5).append_column("quality", pa.array([0.59, 0.6, 1.0]))
    drafts = draft_rows(scored, recipes, TOKENIZER, seed=0, samples_per_chunk=1)
    assert [(d.doc_id, d.prepared.recipe.name, d.quality) for d in drafts if d.chunk == 0] == [
        ("d0", "cc_wiki", 0.59), ("d1", "cc_distill", 0.6), ("d2", "cc_distill", 1.0),
    ]  # fmt: skip
    guessed = draft_rows(table(TEXT * 3, "{} | {} | > 1"), recipes, TOKENIZER, seed=0, samples_per_chunk=1)
    assert [d.prepared.recipe.name for d in guessed if d.chunk == 0] == ["cc_distill", "cc_wiki"]
    assert all(0 <= d.quality <= 1 for d in guessed)


def test_a_source_that_goes_into_the_text_is_compared_with_the_held_out_split_too():
    relaxed = {
        "chunking": {"min_length": 0},
        "thresholds": {"min_words": 1, "format": "free"},
        "routing": {"min_quality": 0.0},
    }
    qa = "Where is the reef? To the north of the cape."
    index = NgramIndex([words_of(TEXT)])
    rows = [
        table_of(drafts_of([TEXT], [prepared(name, **relaxed)]), [answer(qa)], PROVENANCE, index).to_pylist()[
            0
        ]
        for name in ("cc_diverse_qa", "cc_knowledge_list")
    ]
    assert [row["reject_reasons"] for row in rows] == [["contaminated"], []]
    assert rows[0]["held_out_overlap"] == pytest.approx(
        len(words_of(TEXT)) / len(words_of(TEXT + qa)), abs=0.01
    )
    assert rows[1]["held_out_overlap"] == 0.0
