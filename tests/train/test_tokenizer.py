import contextlib
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from upath import UPath

from synth.errors import UserError
from train.tokenizer import END_OF_TEXT, Encoder, load_tokenizer, train_tokenizer

TEXTS = [
    f"The tokenizer number {i} reads a sentence about tokens, bytes and {i * 7} documents."
    for i in range(200)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    directory = UPath(tmp_path_factory.mktemp("tokenizer"))
    train_tokenizer(TEXTS, 400, directory)
    return Encoder.read(directory)


def save(directory, tokenizer: tokenizers.Tokenizer, **special: str) -> str:
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    return str(directory)


def byte_level(added: list[tokenizers.AddedToken | str] = [], **parts: object) -> tokenizers.Tokenizer:  # noqa: B006
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(encoder, text):
    (ids,) = encoder.encode([text])
    assert ids[0] == encoder.info.eot_id
    assert encoder.decode(ids) == text
    assert encoder.token_bytes[ids].sum() == len(text.encode())
    assert encoder.count_altered([text], [ids]) == 0


@pytest.mark.parametrize(
    "text", [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}{END_OF_TEXT}\n", "<|endoftext"]
)
def test_a_document_that_spells_the_special_token_is_text(encoder, text):
    (ids,) = encoder.encode([text])
    assert (ids == encoder.info.eot_id).sum() == 1
    assert encoder.decode(ids) == text


def test_a_trained_tokenizer_opens_in_transformers(encoder, tmp_path):
    info = train_tokenizer(TEXTS, 400, UPath(tmp_path))
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (opened.eos_token, opened.eos_token_id, len(opened)) == (END_OF_TEXT, info.eot_id, info.vocab_size)
    assert opened.bos_token == END_OF_TEXT
    (ids,) = encoder.encode([TEXTS[0]])
    assert opened(TEXTS[0])["input_ids"] == ids[1:].tolist()
    assert opened.decode(ids[1:]) == TEXTS[0]


def test_the_same_text_gives_the_same_file_whatever_the_threads(tmp_path):
    """Trained in processes of their own: Rust's hash maps have another seed in each."""
    program = (
        "import sys; from upath import UPath; from train.tokenizer import train_tokenizer;"
        "texts = [f'word{i % 97} word{i % 89} {i}' for i in range(3000)];"
        "train_tokenizer(texts, 500, UPath(sys.argv[1]))"
    )
    digests = set()
    for run, threads in enumerate(("1", "2")):
        out = tmp_path / str(run)
        subprocess.run(
            [sys.executable, "-c", program, out], check=True, env={"RAYON_NUM_THREADS": threads, "PATH": ""}
        )
        digests.add(
            hashlib.sha256(
                (out / "tokenizer.json").read_bytes() + (out / "manifest.json").read_bytes()
            ).digest()
        )
    assert len(digests) == 1


def test_other_text_gives_another_hash(encoder, tmp_path):
    info = train_tokenizer([text.upper() for text in TEXTS], 400, UPath(tmp_path))
    assert info.hash != encoder.info.hash
    assert json.loads((tmp_path / "manifest.json").read_text())["training_bytes"] == sum(map(len, TEXTS))


def test_a_vocabulary_is_no_larger_than_the_text_can_fill(tmp_path):
    assert train_tokenizer(["ab"], 5000, UPath(tmp_path)).vocab_size == 258  # 256 bytes, end of text, "ab"


# --- loaded ones -----------------------------------------------------------------------------------------------


def test_a_loaded_tokenizer_is_used_to_the_byte(tmp_path):
    """Its end of text, and whatever else it has added, spelled out in a document, stays text."""
    tokenizer = byte_level(["  ", "stage", tokenizers.AddedToken("<|tool|>", special=True)])
    path = save(tmp_path / "in", tokenizer, eos_token="<|end|>")
    info = load_tokenizer("unused", path, UPath(tmp_path / "out"))
    encoder = Encoder.read(UPath(tmp_path / "out"))
    assert (info.eot_token, info.vocab_size, info.training_bytes) == ("<|end|>", 256 + 4, None)
    text = "a  b <|tool|> c <|end|> stage 漢"
    (ids,) = encoder.encode([text])
    assert np.isin(ids, [256, 257]).sum() == 2  # two spaces, stage: single tokens of their own
    assert not np.isin(ids, [258]).any()
    assert encoder.decode(ids) == text
    assert encoder.token_bytes[ids].sum() == len(text.encode())


def test_a_loaded_tokenizer_may_lie_under_the_study_root(tmp_path):
    save(tmp_path / "generators" / "tiny", byte_level(), eos_token=END_OF_TEXT)
    info = load_tokenizer(str(tmp_path), "root:generators/tiny", UPath(tmp_path / "out"))
    assert info.eot_token == END_OF_TEXT


def test_documents_that_a_tokenizer_normalises_are_counted(tmp_path):
    path = save(tmp_path / "in", byte_level(normalizer=normalizers.Lowercase()), eos_token=END_OF_TEXT)
    load_tokenizer("unused", path, UPath(tmp_path / "out"))
    encoder = Encoder.read(UPath(tmp_path / "out"))
    texts = ["as it stands", "As it was", "İ"]
    assert encoder.count_altered(texts, encoder.encode(texts)) == 2


def test_documents_that_gain_a_space_are_counted(tmp_path):
    tokenizer = byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    load_tokenizer("unused", save(tmp_path / "in", tokenizer, eos_token=END_OF_TEXT), UPath(tmp_path / "out"))
    encoder = Encoder.read(UPath(tmp_path / "out"))
    texts = [" a", "a"]
    assert encoder.count_altered(texts, encoder.encode(texts)) == 1


@pytest.mark.parametrize(
    ("tokenizer", "special", "message"),
    [
        (byte_level(), {}, "has neither <|endoftext|> nor an eos_token"),
        (byte_level(decoder=decoders.Metaspace()), {"eos_token": "</s>"}, "is not a byte-level tokenizer"),
    ],
)
def test_an_unfit_tokenizer_is_refused(tmp_path, tokenizer, special, message):
    path = save(tmp_path / "in", tokenizer, **special)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        load_tokenizer("unused", path, UPath(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_tokenizer_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.path = '.*/nowhere' cannot be loaded"):
        load_tokenizer("unused", str(tmp_path / "nowhere"), UPath(tmp_path / "out"))


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    path = tmp_path / "in"
    save(path, byte_level(), eos_token=END_OF_TEXT)
    ran = tmp_path / "ran"
    (path / "custom.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Custom(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": [None, "custom.Custom"]}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    with contextlib.suppress(UserError):
        load_tokenizer("unused", str(path), UPath(tmp_path / "out"))
    assert not ran.exists()
