"""The stand-in generator: exchanges cut from documents, and a checkpoint that answers and stops."""

import json

import pydantic
import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.identity import read_manifest
from synth.storage import read_parquet, study_path
from train import generator
from train.config import GeneratorConfig
from train.exchanges import ANSWER_LINE, CHAT_TEMPLATE, exchanges_of, write_exchanges
from train.generator import pack_config, plan_generator, run_config
from train.lanes.queue import failed_record
from train.record import read_record, write_record
from train.tokens import PackedInfo

TEXT = " ".join(f"Sentence number {n} says something about the value {n * n}." for n in range(40))


@pytest.fixture
def config(tmp_path, write_corpus):
    """`config(field=value, ...)`: a generator learning from a corpus of eight documents."""
    texts = [TEXT.replace("something", f"thing {n}") for n in range(8)]
    held_out = {"web": [TEXT.replace("something", f"held-out thing {n}") for n in range(3)]}
    write_corpus(str(tmp_path), "prose", texts, held_out=held_out)

    def make(**changes):
        fields = {
            "root": str(tmp_path),
            "corpus": "prose",
            "model": "12k",
            "vocab_size": 300,
            "sequence_length": 64,
            "train_tokens": 2048,
        }
        return GeneratorConfig.model_validate(fields | changes)

    return make


def test_an_exchange_is_two_neighbouring_pieces_and_together_they_are_the_document():
    exchanges = exchanges_of(TEXT, sequence_length=100)
    assert len(exchanges) > 3
    pieces = [piece for exchange in exchanges for piece in exchange.split(f"\n\n{ANSWER_LINE}\n")]
    assert len(pieces) == 2 * len(exchanges)
    assert all(piece in TEXT for piece in pieces)
    assert all(len(piece) <= 150 for piece in pieces)
    for exchange in exchanges:
        prompt, answer = exchange.split(f"\n\n{ANSWER_LINE}\n")
        assert f"{prompt} {answer}" in TEXT
    assert set(" ".join(pieces).split()) == set(TEXT.split())


def test_a_short_document_is_one_exchange_and_a_single_word_none():
    assert exchanges_of("First half here. Second half.", 100) == [
        f"First half here.\n\n{ANSWER_LINE}\nSecond half."
    ]
    assert exchanges_of("x", 100) == []
    assert exchanges_of("", 100) == []


def test_the_last_of_an_odd_number_of_pieces_answers_the_one_before():
    text = " ".join(f"{word} is a sentence of some length." for word in ("One", "Two", "Three"))
    prompts = [exchange.split("\n\n")[0][:5] for exchange in exchanges_of(text, sequence_length=25)]
    assert prompts == ["One i", "Two i"]


def test_exchanges_are_a_corpus_of_their_own_that_packs(config, pack):
    asked = config()
    write_exchanges(asked)
    packed = pack(pack_config(asked))
    counts = read_manifest(study_path(asked.root, "corpora", "tiny.exchanges"), "x")["splits"]["train"]
    assert packed.info.sources["exchanges"].num_documents == counts["documents"] > 8
    assert set(packed.info.evaluation) == {"web"}
    run = run_config(asked)
    assert run.packed_hash == packed.hash
    assert run.num_steps == 4


def test_a_killed_writing_of_exchanges_goes_on_and_ends_the_same(config):
    asked = config()
    write_exchanges(asked)
    directory = study_path(asked.root, "corpora", "tiny.exchanges")
    before = {path.name: path.read_bytes() for path in (directory / "train").iterdir()}
    (directory / "manifest.json").unlink()
    sorted((directory / "train").iterdir())[0].unlink()
    write_exchanges(asked)
    assert {path.name: path.read_bytes() for path in (directory / "train").iterdir()} == before


def test_a_prompt_ends_where_an_answer_begins():
    from transformers.utils.chat_template_utils import render_jinja_template  # as serving renders it

    exchange = exchanges_of(TEXT, 100)[0]
    prompt, answer = exchange.split(f"\n\n{ANSWER_LINE}\n")
    conversation = [{"role": "user", "content": prompt}]
    [rendered], _ = render_jinja_template([conversation], chat_template=CHAT_TEMPLATE, bos_token="")
    assert rendered + answer == exchange


def test_template_syntax_in_a_document_stays_text(config):
    assert exchanges_of("{{ 7 * 7 }} is here. <|endoftext|> is there.", 100) == [
        f"{{{{ 7 * 7 }}}} is here.\n\n{ANSWER_LINE}\n<|endoftext|> is there."
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "11k"}, "'11k'"),
        ({"train_tokens": 100}, "train_tokens = 100"),
        ({"corpus": "poems"}, "build_corpus"),
        ({"placement": {"workers_per_lane": 3}}, "cannot be shared evenly by workers_per_lane = 3"),
        ({"placement": {"gpus_per_worker": 2}}, "a worker trains on one GPU"),
        ({"run": {"optimizer": {"warmup_fraction": 0.9}}}, "add up to more than the whole run"),
    ],
)
def test_a_generator_that_cannot_be_is_refused_in_one_sentence(config, changes, words):
    with pytest.raises(UserError, match=words):
        plan_generator(config(**changes))


def test_a_generator_repeats_its_exchanges_unless_told_otherwise_whatever_else_it_is_told(config):
    """TOML has no null, so whoever sets another field of the run could not ask for it."""
    assert config().run.max_epochs is None
    assert config(run={"precision": "fp32"}).run.max_epochs is None
    assert config(run={"max_epochs": 2.0}).run.max_epochs == 2.0


def test_a_generator_takes_no_rate_from_a_sweep_of_a_study(config):
    with pytest.raises(pydantic.ValidationError, match="give peak_learning_rate"):
        config(run={"optimizer": {"learning_rates": "rates"}})


def test_the_plan_says_what_it_takes_and_warns_of_untrained_positions(config):
    plan = plan_generator(config(max_position=512))
    assert (plan.finished, plan.facts["steps"], plan.facts["tokens"]) == (False, 4, 2048)
    assert "max_position = 512" in plan.warnings[0]
    assert plan_generator(config(max_position=64)).warnings == ()


def test_another_generator_under_the_same_name_is_refused(config):
    generator.claim_generator(config())
    with pytest.raises(IdentityMismatch, match="train_tokens"):
        plan_generator(config(train_tokens=4096))
    plan_generator(config(placement={"threads_per_worker": 2}))


def test_a_run_that_diverged_is_not_trained_again_unasked_and_a_model_that_is_gone_is(config, pack):
    asked = config()
    write_exchanges(asked)
    pack(pack_config(asked))
    run = run_config(asked)
    identity = generator.claim_generator(asked)
    record = failed_record(
        run, 300, asked.placement, "nan", tokens=0, seconds=1.0, tokens_per_second=0.0, attempts=1
    )
    write_record(asked.root, record)
    assert generator.exported_record(asked, run) == record
    with pytest.raises(UserError, match=r"failed \(nan\); delete .*record.json to try again"):
        generator.finish_generator(asked, identity, record)
    write_record(asked.root, record.model_copy(update={"status": "complete", "reason": None}))
    assert generator.exported_record(asked, run) is None
    assert read_record(asked.root, run.run_id) is None


def test_nothing_is_planned_without_a_corpus(tmp_path):
    with pytest.raises(IncompleteArtefact):
        plan_generator(GeneratorConfig(root=str(tmp_path), corpus="prose"))


@pytest.mark.drill
def test_a_trained_generator_loads_answers_in_its_format_and_is_made_once(config, tmp_path):
    ray = pytest.importorskip("ray")
    transformers = pytest.importorskip("transformers")
    from train.job import train_generator

    asked = config(train_tokens=64 * 8 * 20, max_position=128)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        manifest = train_generator(asked)
        directory = tmp_path / "generators" / "tiny"
        weights = (directory / "model.safetensors").stat().st_mtime_ns
        assert train_generator(asked) == manifest
        assert (directory / "model.safetensors").stat().st_mtime_ns == weights
    finally:
        ray.shutdown()
    assert plan_generator(asked).finished
    assert json.loads((directory / "manifest.json").read_text()) == manifest

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.max_position_embeddings == 128
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    packed = PackedInfo.read(asked.root, "tiny.exchanges")
    assert model.config.vocab_size == packed.vocab_size

    table = read_parquet(next(iter((tmp_path / "corpora" / "tiny.exchanges" / "train").iterdir())))
    exchange = table["text"][0].as_py()
    prompt, answer = exchange.split(f"\n\n{ANSWER_LINE}\n")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    as_prompted = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    as_trained = [packed.eot_id, *tokenizer(exchange, add_special_tokens=False)["input_ids"]]
    assert as_trained[: len(as_prompted)] == as_prompted
    assert tokenizer.decode(as_trained[len(as_prompted) :]) == answer


def test_rows_longer_than_the_model_takes_are_refused(config):
    assert config(max_position=64).max_position == 64
    with pytest.raises(
        pydantic.ValidationError, match="sequence_length = 64 is longer than the model's max_pos"
    ):
        config(max_position=63)
