"""What a person sees before a job: the recipes, real prompts, counts; no engine, no Ray."""

import subprocess
import sys

import pytest

from rayjobs.rephrase_corpus import main
from synth.config import RephraseConfig
from synth.errors import UserError
from synth.preview import count_drafts, list_recipes, preview_prompts
from synth.recipe import shipped_recipes


def test_every_recipe_is_listed_with_what_it_makes_and_its_source(capsys):
    lines = list(list_recipes())
    text = "\n".join(lines)
    assert [line.split("  [")[0] for line in lines if not line.startswith(" ")] == shipped_recipes()
    assert text.count("arXiv") >= len(shipped_recipes())
    assert main(["--list-recipes"]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_a_preview_shows_the_documents_in_their_prompts_and_counts(fake_config):
    text = "\n".join(preview_prompts(fake_config(), 2))
    assert text.count("== document ") == 4, "two documents, two recipes"
    assert text.count("Rewrite the text below in your own words.") == 2
    assert "stands beside the" in text
    assert "hq: 4 documents -> 4 rows (0 not sent); prompt tokens: mean" in text, "the first part has four"
    assert "0 chunks cut (0 tokens lost)" in text


def test_a_preview_says_what_is_cut_off_and_what_is_not_sent(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "few")
    make_corpus(root, ["The lamp was lit. " * 40, "", "Short."])
    over = {"chunking": {"unit": "document", "max_length": None, "min_length": 10}, "max_input_tokens": 100}
    config = fake_config(root=root, recipes=("hq",), recipe_overrides=over)
    text = "\n".join(preview_prompts(config, 3))
    assert "620 tokens of the chunk cut off at its end" in text
    prompt = text.split(" --\n", 1)[1].split("\n== ")[0]
    assert prompt.count("The lamp was lit.") == 5, "as it is sent: what is cut off is not shown"
    assert "not sent: empty_input" in text
    assert "not sent: chunk_too_short" in text
    assert "hq: 3 documents -> 3 rows (2 not sent)" in text
    assert "1 chunks cut (620 tokens lost)" in text


def test_a_preview_shows_more_than_the_first_chunk_and_says_how_many_it_does_not(
    fake_config, make_corpus, tmp_path
):
    root = str(tmp_path / "long")
    make_corpus(root, ["One lamp was lit. Two lamps were lit. Three were lit. Four were lit. Five were lit."])
    over = {"chunking": {"unit": "words", "max_length": 4}}
    text = "\n".join(preview_prompts(fake_config(root=root, recipes=("hq",), recipe_overrides=over), 1))
    assert [f"chunk {at} of 5" in text for at in range(1, 6)] == [True, True, True, False, False]
    assert "Three were lit." in text
    assert "[... 2 more chunks of this document not shown ...]" in text


def test_a_document_cannot_command_the_terminal(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "hostile")
    make_corpus(root, ["Red \x1b[31m alert \x07 \u202e txet. \x9b2J Enough words."])
    text = "\n".join(preview_prompts(fake_config(root=root, recipes=("hq",)), 1))
    assert not set(text) & set("\x1b\x07\u202e\x9b")
    assert "Red \\x1b[31m alert \\x07 \\x202e txet." in text


@pytest.mark.slow
def test_a_preview_counts_with_the_models_own_tokenizer(natural, tiny_model):
    config = RephraseConfig.model_validate(
        {"root": natural, "corpus": "natural", "recipes": ("hq",), "engine": {"model": str(tiny_model), "max_model_len": 1024}}
    )  # fmt: skip
    text = "\n".join(preview_prompts(config, 1))
    assert "prompt format plain, window 1,024 tokens" in text
    from transformers import AutoTokenizer

    prompt = text.split(" --\n", 1)[1].split("\n\n== counts")[0]
    counted = int(text.split("-- ")[1].split(" prompt tokens")[0].replace(",", ""))
    assert counted == pytest.approx(len(AutoTokenizer.from_pretrained(tiny_model)(prompt).input_ids), abs=3)


def test_counts_of_nothing_are_nothing():
    assert count_drafts([]) == []


def test_the_flags_are_checked_like_any_other(capsys, natural):
    assert main(["--preview", "0", "--root", natural, "--corpus", "natural"]) == 2
    assert "--preview: '0' is not a whole number from 1 on" in capsys.readouterr().err
    assert main(["--preview", "1", "--root", natural, "--corpus", "natural", "--recipes", '["hqq"]', "--engine.model", "x", "--engine.kind", "fake"]) == 2  # fmt: skip
    assert "no recipe 'hqq'" in capsys.readouterr().err
    assert main(["--preview", "1", "--root", natural, "--corpus", "natural", "--recipes", '["hq"]', "--engine.model", "x", "--engine.kind", "fake"]) == 0  # fmt: skip
    assert "== document" in capsys.readouterr().out


def test_the_list_of_recipes_needs_neither_ray_nor_torch():
    code = (
        "import sys; from rayjobs.rephrase_corpus import main; main(['--list-recipes']);"
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_mix_must_name_its_recipes(fake_config):
    with pytest.raises(UserError, match=r"recipe_weights.faq: recipes names no recipe 'faq'"):
        list(preview_prompts(fake_config(recipe_weights={"faq": 1.0}), 1))
    with pytest.raises(ValueError, match="a weight is negative"):
        fake_config(recipe_weights={"hq": -1.0})
    with pytest.raises(
        UserError, match=r"recipe_weights has no weight for 'qa', which recipes names: give it one"
    ):
        list(preview_prompts(fake_config(recipe_weights={"hq": 1.0}), 1))
    with pytest.raises(
        ValueError, match=r"recipes_per_document = 2, and recipe_weights gives 0 recipes weight"
    ):
        fake_config(recipes_per_document=2)
    with pytest.raises(
        ValueError, match=r"recipes_per_document = 2, and recipe_weights gives 1 recipes weight"
    ):
        fake_config(recipe_weights={"hq": 1.0, "qa": 0.0}, recipes_per_document=2)
    text = "\n".join(preview_prompts(fake_config(recipe_weights={"hq": 1.0, "qa": 1.0}), 4))
    assert text.count("== document ") == 4, "one recipe each"
