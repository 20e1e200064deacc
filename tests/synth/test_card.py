"""The data card: right numbers from the files, readable anywhere, and nothing in a text can act on its reader."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from synth.card.figures import draw_histogram, text_histogram
from synth.card.page import cell, percent, quoted, visible
from synth.card.survey import EDGES, check_accounts, spaced
from synth.errors import UserError
from synth.ledger import read_entries
from synth.rephrase import finish_work, open_work
from synth.storage import read_json, read_parquet, study_path, write_parquet_atomic
from tests.synth.conftest import make_parts, text_of

NASTY = "</pre><script>alert(1)</script> {{ 7 * 7 }} <img src=http://example.org/x> |pipe| `tick` \u202eevil\x1b[31m ~~~~"


def made(config):
    work = open_work(config)
    make_parts(work)
    return work


class Page(HTMLParser):
    VOID = frozenset({"meta", "br", "img", "link", "input", "hr", "rect", "line"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.addresses = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def finished(fake_config):
    config = fake_config({"refusal_fraction": 0.3, "truncation_fraction": 0.2}, samples_per_chunk=3)
    work = made(config)
    return work, finish_work(work)


def test_the_card_says_what_the_files_say(finished):
    work, manifest = finished
    rows = [
        row
        for at in range(6)
        for row in read_parquet(work.directory / f"part-{at:05d}-of-00006.parquet").to_pylist()
    ]
    kept = [row for row in rows if row["keep"]]
    card = (work.directory / "card.md").read_text()
    assert f"| **all** | {len(rows)} | {len(kept)} | {len(rows) - len(kept)} | 0 |" in card
    wasted = sum(row["completion_tokens"] for row in rows if not row["keep"])
    assert manifest["wasted_tokens"] == wasted
    assert f"{wasted:,} wasted on rows that were not kept" in card
    refused = sum("refusal" in row["reject_reasons"] for row in rows)
    assert f"| refusal | {refused} |" in card
    lowest = min((row for row in kept if row["recipe"] == "hq"), key=lambda row: row["seed"])
    assert card.index(f"### hq of {lowest['doc_id']}") < card.index("### qa of")


def test_the_histograms_hold_every_answered_row(finished):
    work, _ = finished
    page = (work.directory / "card.html").read_text()
    rows = [
        row
        for at in range(6)
        for row in read_parquet(work.directory / f"part-{at:05d}-of-00006.parquet").to_pylist()
    ]
    for recipe in ("hq", "qa"):
        mine = [row for row in rows if row["recipe"] == recipe]
        section = page.split(f"<h3>{recipe}</h3>")[1].split("<h3>")[0]
        figure = section.split("Answer, tokens</figcaption>")[1].split("</figure>")[0]
        bins = re.findall(r"<title>(\d+) to (\d+): (\d+) kept, (\d+) not</title>", figure)
        assert sum(int(kept) + int(other) for *_, kept, other in bins) == len(mine) == 72
        for low, high, kept, other in bins:
            inside = [row["keep"] for row in mine if int(low) <= row["completion_tokens"] < int(high)]
            assert (sum(inside), len(inside) - sum(inside)) == (int(kept), int(other))


def test_the_markdown_card_has_the_histograms_as_text(finished):
    work, _ = finished
    card = (work.directory / "card.md").read_text()
    for recipe in ("hq", "qa"):
        table = card.split(f"| {recipe}: Answer, tokens | kept | not kept | |\n")[1].split("\n\n")[0]
        bins = re.findall(r"^\| (\d+) to (\d+) \| (\d+) \| (\d+) \| ([█░]*) \|$", table, re.MULTILINE)
        assert sum(int(kept) + int(other) for *_, kept, other, _ in bins) == 72
        assert max(len(bar) for *_, bar in bins) == 30
    counts = np.array([[1, 0, 6, 0], [1, 0, 0, 0]])
    assert text_histogram(counts, (0, 1, 2, 3, float("inf"))) == [
        ("0 to 1", 1, 1, "█" * 5 + "░" * 5), ("1 to 2", 0, 0, ""), ("2 to 3", 6, 0, "█" * 30),
    ]  # fmt: skip


def test_texts_that_open_alike_are_listed_with_their_counts(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "alike")
    texts = [
        f"{'In this text we see' if at % 3 else f'Number {at} has come to'} {text_of(at)}" for at in range(9)
    ]
    make_corpus(root, texts)
    work = made(fake_config(root=root, recipes=("hq",)))
    finish_work(work)
    found = read_json(work.directory / "statistics.json")["sources"]["(natural)"]["openings"]
    assert found["most"] == [["in this text we see", 6]]
    card = (work.directory / "card.md").read_text()
    assert "- \\(natural\\): in this text we see: 6 of 9\n" in card
    assert (
        '<td class="left">in this text we see</td><td>6</td><td>9</td>'
        in (work.directory / "card.html").read_text()
    )


def test_what_was_lost_on_the_way_is_said(fake_config):
    work = made(fake_config({"dies_every": 20, "latency_seconds": 0.01}, placement={"max_num_seqs": 4}))
    manifest = finish_work(work)
    assert manifest["lost_attempts"] > 2
    assert 0 < manifest["lost_device_seconds"] < manifest["device_seconds"]
    for name in ("card.md", "card.html"):
        text = (work.directory / name).read_text()
        assert f"{manifest['lost_attempts']:,} attempts without an answer" in text
        assert "killed is in no account" in text


def test_the_page_is_whole_asks_for_nothing_and_fits_a_phone(finished):
    text = (finished[0].directory / "card.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses == []
    assert "script" not in page.tags
    assert "http" not in text.replace("http-equiv", "")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_writing_it_again_gives_the_same_bytes(finished):
    work, _ = finished
    names = ("card.md", "card.html", "statistics.json")
    before = {name: (work.directory / name).read_bytes() for name in names}
    (work.directory / "manifest.json").unlink()
    finish_work(work)
    assert {name: (work.directory / name).read_bytes() for name in names} == before


def test_hostile_texts_are_shown_and_do_nothing(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "hostile")
    make_corpus(root, [f"{NASTY} number {number}. " * 5 for number in range(6)])
    config = fake_config(root=root, recipes=("hq",))
    work = made(config)
    finish_work(work)
    text = (work.directory / "card.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses == []
    assert "script" not in page.tags
    assert "alert(1)" in "".join(page.text)
    assert "{{ 7 * 7 }}" in "".join(page.text)
    markdown = (work.directory / "card.md").read_text()
    for shown in (text, markdown):
        assert not set(shown) & set("\u202e\x1b")
    outside = re.sub(r"^(~{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside


def test_what_is_quoted_cannot_end_its_quotation():
    block = quoted("~~~\n ~~~~~ x\n```")
    assert block.startswith("~~~~~~~~text\n")
    assert block.endswith("\n~~~~~~~~")
    assert cell("a|b*c [x](y) <i>") == "a\\|b\\*c \\[x\\]\\(y\\) \\<i\\>"
    assert visible("a\x00b\u2066c\n") == "a\ufffdb\ufffdc\n"


def test_statistics_compare_every_recipe_with_natural_text(finished):
    found = read_json(finished[0].directory / "statistics.json")
    assert found["sources"].keys() == {"(natural)", "hq", "qa"}
    assert found["smoothing"] == 0.1
    assert found["basis"]["sampled_parts"] == [0, 1, 2, 3, 4, 5]
    assert found["words_of_each_source"] > 100
    assert "perplexity" not in found


def test_statistics_are_taken_against_each_held_out_domain(fake_config, natural):
    directory = study_path(natural, "corpora", "natural")
    manifest = read_json(directory / "manifest.json")
    rows = [{"doc_id": f"h{at}", "text": text, "domain": domain, "source": "t"} for at, (text, domain) in enumerate([
        ("The harbour stands beside the glacier.", "../up"), ("Purple marmalade.", "sweet"), ("The quarry stands.", "../up")])]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    write_parquet_atomic(directory / "held_out" / "part-00000-of-00001.parquet", table)
    manifest["splits"]["held_out"] = {"parts": 1, "documents": 3, "bytes": 10}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    work = made(fake_config())
    finish_work(work)
    found = read_json(work.directory / "statistics.json")["domains"]
    assert found.keys() == {"../up", "sweet"}
    assert found["../up"]["words"] == 9
    assert found["../up"]["closeness"]["(natural)"]["covered_words"] == 1.0
    assert found["sweet"]["closeness"]["(natural)"]["covered_words"] == 0.0
    assert found["sweet"]["closeness"]["hq"]["kl_domain_to_source_nats"] > found["../up"]["closeness"]["hq"]["kl_domain_to_source_nats"]  # fmt: skip
    overlaps = read_parquet(work.directory / "part-00000-of-00006.parquet", ["held_out_overlap"])[
        "held_out_overlap"
    ]
    assert overlaps.null_count == 0
    page = (work.directory / "card.html").read_text()
    assert "../up" in page


def test_a_part_that_does_not_hold_what_the_ledger_says_is_named(finished):
    work, _ = finished
    path = work.directory / "part-00002-of-00006.parquet"
    table = read_parquet(path)
    entry = list(read_entries(work.directory, 6))[2]
    check_accounts(path, table, entry)
    with pytest.raises(
        UserError,
        match=r"part-00002-of-00006.parquet holds 1\d rows of recipe (hq|qa), its ledger entry says 12",
    ):
        check_accounts(path, table.slice(1), entry)
    write_parquet_atomic(path, table.slice(1))
    (work.directory / "manifest.json").unlink()
    with pytest.raises(UserError, match="delete both and run rephrase_corpus again"):
        finish_work(work)
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(UserError, match=r"part-00002-of-00006.parquet cannot be read"):
        finish_work(work)


def test_a_set_of_which_nothing_was_kept_has_a_card(fake_config):
    work = made(fake_config({"refusal_fraction": 1.0}))
    assert finish_work(work)["kept"] == 0
    text = (work.directory / "card.html").read_text()
    assert Page(text).open == []
    assert "0.0 %" in text
    assert "–" in text, "a rate that was not measured is a dash"


def test_a_price_is_shown_where_one_is_given(fake_config):
    work = made(fake_config(cost={"device_hour_price": 2.5, "currency": "EUR"}))
    manifest = finish_work(work)
    price = manifest["device_hours_per_billion_accepted_tokens"] * 2.5
    assert (
        f"price of a billion accepted tokens: {price:,.2f} EUR, at 2.50 a device-hour"
        in (work.directory / "card.md").read_text()
    )


def test_a_few_in_a_million_are_not_nothing():
    assert [percent(value) for value in (None, 0.0, 0.0001, 0.0005, 0.5)] == [
        "–",
        "0.0 %",
        "<0.1 %",
        "0.1 %",
        "50.0 %",
    ]


def test_an_empty_histogram_is_an_empty_figure():
    counts = np.zeros((2, 10), np.int64)
    assert "no rows" in draw_histogram("x", counts, EDGES["repetition"])


def test_parts_are_sampled_evenly():
    assert spaced(3, 64) == (0, 1, 2)
    assert spaced(10, 5) == (0, 2, 4, 6, 8)
    assert spaced(0, 5) == ()


@pytest.mark.slow
def test_perplexity_under_a_checkpoint_is_measured_where_asked(fake_config, tiny_model, monkeypatch):
    import transformers

    loaded = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *given, **options: loaded.append(given) or load(*given, **options),
    )
    work = made(fake_config(card={"perplexity_model": str(tiny_model), "perplexity_texts": 5}))
    finish_work(work)
    assert len(loaded) == 1, "once for all sources"
    found = read_json(work.directory / "statistics.json")["perplexity"]["sources"]
    assert found.keys() == {"(natural)", "hq", "qa"}
    for each in found.values():
        assert each["texts"] == 5
        # a random model of 512 tokens spreads its mass evenly but for the noise of its weights
        assert 350 < each["perplexity"] < 900
        quantiles = list(each["perplexity_quantiles"].values())
        assert quantiles == sorted(quantiles)
    bad = made(fake_config(name="bad", card={"perplexity_model": "./nowhere"}))
    with pytest.raises(UserError, match=r"card.perplexity_model = './nowhere' cannot be loaded"):
        finish_work(bad)
