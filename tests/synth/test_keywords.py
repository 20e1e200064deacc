"""Keywords in scripts with and without spaces, and text that has none."""

import pytest

from synth.keywords import MOST_CHARACTERS, draw_keywords, find_common_words
from synth.rephrase import finish_work, open_work
from synth.storage import read_parquet
from tests.synth.conftest import make_parts

CHINESE = "量子计算机利用量子比特进行计算，与传统计算机不同。量子比特可以同时处于多个状态，因此量子计算在密码学领域有应用前景。"
JAPANESE = "量子コンピュータは、量子力学の原理を用いて計算を行う機械である。従来の機械とは異なる。"
THAI = "ประเทศไทยตั้งอยู่ในเอเชียตะวันออกเฉียงใต้ มีกรุงเทพมหานครเป็นเมืองหลวง ภาษาราชการคือภาษาไทย"
KOREAN = "서울은 대한민국의 수도이다. 한국어는 교착어이다."


@pytest.mark.parametrize(
    ("text", "some"),
    [
        (CHINESE, {"密码学领域", "传统计算机", "应用前景", "量子"}),
        (JAPANESE, {"コンピュータ", "量子力学", "機械"}),
        (THAI, {"ภาษาราชการคือภาษาไทย"}),
        (KOREAN, {"서울은", "대한민국의"}),
    ],
)
def test_text_without_spaces_has_keywords_of_more_than_one_character(text, some):
    everything = draw_keywords(text, 1000, 0)
    assert some <= set(everything)
    assert all(2 <= len(word) <= MOST_CHARACTERS for word in everything)
    assert all(word in text for word in everything)


def test_encoded_data_is_no_keyword_and_long_words_win_no_draw_by_length():
    blob = "QmFzZTY0IGVuY29kZWQgZGF0YSBibG9i" * 4
    text = f"The reef {blob} and 3f9c2ab1e9 beside the harbour {'x' * 1_000_000} has Donaudampfschifffahrtsgesell."
    assert set(draw_keywords(text, 100, 0)) == {"reef", "beside", "harbour", "donaudampfschifffahrtsgesell"}
    firsts = [draw_keywords("harbourlights Donaudampfschifffahrtsgesell", 1, seed)[0] for seed in range(400)]
    assert 150 < firsts.count("harbourlights") < 250


def test_what_is_common_in_a_corpus_without_spaces_is_left_out():
    common = find_common_words([CHINESE] * 50 + ["x"] * 50)
    assert draw_keywords(CHINESE, 8, 0, common) == []


def test_in_a_corpus_of_a_few_documents_not_every_word_is_common():
    assert find_common_words(["the harbour", "the quarry", "a lantern"]) == {"the"}


def test_a_document_without_keywords_is_a_rejected_row_that_nobody_was_asked_for(
    fake_config, make_corpus, tmp_path
):
    root = str(tmp_path / "few")
    make_corpus(root, ["1234 56 " * 50, CHINESE, "The harbour has lanterns and quarries.", "a b c d"])
    config = fake_config(root=root, recipes=("textbook",))
    work = open_work(config)
    _, engine = make_parts(work, [0])
    rows = read_parquet(work.directory / "part-00000-of-00001.parquet").to_pylist()
    assert [row["reject_reasons"] == ["no_keywords"] for row in rows] == [True, False, False, True]
    assert (rows[0]["verdict"], rows[0]["prompt_tokens"]) == ("rejected", 0)
    assert engine._answered_in_all == 2
    assert finish_work(work)["reasons"]["no_keywords"] == 2
