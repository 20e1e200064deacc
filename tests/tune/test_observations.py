"""Tables of runs: what is taken, what is refused, and in which words."""

from __future__ import annotations

from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from synth.errors import UserError
from tune.config import ColumnMapping, LawName, LawsConfig
from tune.law_tasks import read_observations
from tune.laws import LAW_NAMES
from tune.observations import mixture_label
from tune.run_tables import read_table

BOTH = ("num_params", "train_tokens")
GOOD = "num_params,train_tokens,loss,note\n1e6,1e8,3.5,a\n2e6,1e8,3.25,b\n2000000,2e8,3,c\n"


@pytest.fixture
def table(tmp_path):
    def write(text, name="runs.csv"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_csv_becomes_typed_rows(table):
    found = read_table(table(GOOD), ColumnMapping(), BOTH)
    assert [(row.num_params, row.train_tokens, row.loss) for row in found.rows] == [
        (1e6, 1e8, 3.5),
        (2e6, 1e8, 3.25),
        (2e6, 2e8, 3.0),
    ]
    assert [row.row for row in found.rows] == ["row 1", "row 2", "row 3"]
    assert found.groups == ("all",)
    assert found.left_out == ()


def test_parquet_and_csv_of_the_same_rows_agree(table, tmp_path):
    path = tmp_path / "runs.parquet"
    columns = {
        "n": [1_000_000, 2_000_000],
        "d": [1e8, 2e8],
        "l": [3.5, 3.0],
        "mix": ["a", "b"],
        "run": ["x", "y"],
    }
    pq.write_table(pa.table(columns), path)
    mapping = ColumnMapping(num_params="n", train_tokens="d", loss="l", group="mix", run_id="run")
    csv = table("run,mix,l,d,n\nx,a,3.5,1e8,1e6\ny,b,3.0,2e8,2e6\n")
    found = [read_table(each, mapping, BOTH) for each in (str(path), csv)]
    assert found[0].rows == found[1].rows
    assert found[0].groups == ("a", "b")
    assert [row.run_id for row in found[0].rows] == ["x", "y"]
    assert found[0].hash != found[1].hash


def test_a_data_law_needs_no_parameter_column(table):
    path = table("train_tokens,loss\n1e8,3.5\n2e8,3.25\n4e8,3\n")
    config = LawsConfig(runs=path, law="data")
    assert [row.num_params for row in read_observations(config).rows] == [None] * 3
    with pytest.raises(UserError, match="no column 'num_params'"):
        read_observations(LawsConfig(runs=path, law="chinchilla"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "N,train_tokens,loss\n1,2,3\n",
            "no column 'num_params'; it has N, train_tokens, loss: .* --columns.num_params NAME",
        ),
        (GOOD.replace("3.25", "nan"), "loss of row 2 in .* is nan: it must be a positive number"),
        (GOOD.replace("3.25", "-3.25"), "loss of row 2 in .* is -3.25"),
        (GOOD.replace("3.25", "0"), "loss of row 2 in .* is 0"),
        (GOOD.replace("3.25", "high"), "loss of row 2 in .* is 'high'"),
        (GOOD.replace("3.25", ""), "loss of row 2 in .* is empty"),
        (GOOD + "1e6,1e8,3.5,a\n", "rows 1 and 4 of .* are identical in every column"),
        (GOOD + "1,2\n", "cannot be read as a table: .*Expected 4 columns"),
        ("", "cannot be read as a table: Empty CSV file"),
    ],
)
def test_bad_tables_get_one_sentence(table, text, message):
    with pytest.raises(UserError, match=message) as raised:
        read_table(table(text), ColumnMapping(), BOTH)
    assert "\n" not in str(raised.value)


def test_a_row_without_its_group_is_refused(table):
    path = table("num_params,train_tokens,loss,mix\n1,1,1,a\n2,2,2,\n")
    with pytest.raises(UserError, match=r"mix of row 2 in .* is empty"):
        read_table(path, ColumnMapping(group="mix"), BOTH)


def test_shares_and_unique_tokens_are_read_when_the_law_needs_them(table):
    path = table("num_params,train_tokens,loss,r,unique_tokens,web\n1,10,3.5,0,5,0.25\n2,20,3,1,5,0.5\n")
    mapping = ColumnMapping(share="r", shares=("web",))
    ratio = read_table(path, mapping, ("num_params", "train_tokens", "share"))
    assert [row.share for row in ratio.rows] == [0.0, 1.0]
    assert [row.value("web") for row in read_table(path, mapping, ("web",)).rows] == [0.25, 0.5]
    repeated = read_table(path, mapping, ("num_params", "train_tokens", "unique_tokens"))
    assert [row.unique_tokens for row in repeated.rows] == [5.0, 5.0]
    with pytest.raises(UserError, match=r"train_tokens of row 1 in .* is 10: it must be a share"):
        read_table(path, ColumnMapping(share="train_tokens"), ("share",))
    with pytest.raises(UserError, match=r"no column 'code'.*--columns.shares NAME"):
        read_table(path, ColumnMapping(shares=("code",)), ("code",))


def test_every_law_can_be_asked_for():
    assert set(get_args(LawName)) == set(LAW_NAMES)
    with pytest.raises(UserError, match=r"name them with columns.shares"):
        read_observations(LawsConfig(runs="runs.csv", law="exponential_mixing"))


def test_files_that_are_no_table_are_refused(table, tmp_path):
    with pytest.raises(UserError, match=r"does not exist"):
        read_table(str(tmp_path / "no.csv"), ColumnMapping(), BOTH)
    with pytest.raises(UserError, match=r"must end in .csv or .parquet"):
        read_table(table(GOOD, "runs.txt"), ColumnMapping(), BOTH)
    with pytest.raises(UserError, match=r"cannot be read as a table"):
        read_table(table(GOOD, "runs.parquet"), ColumnMapping(), BOTH)


def test_the_highest_losses_are_dropped_and_listed(table):
    found = read_observations(LawsConfig(runs=table(GOOD), drop_highest_losses=1))
    assert [row.row for row in found.rows] == ["row 2", "row 3"]
    assert found.excluded_of("all")[0].run_id == "row 1"
    assert "drop_highest_losses = 1" in found.excluded_of("all")[0].reason


@pytest.mark.parametrize(
    ("synthetic", "share", "label"),
    [
        (None, 0.0, "natural"),
        ("hq", 0.0, "natural"),
        ("hq", 1 / 3, "hq 33 %"),
        ("qa", 0.025, "qa 2.5 %"),
        ("qa", 1.0, "qa 100 %"),
    ],
)
def test_mixtures_have_one_name(synthetic, share, label):
    assert mixture_label(synthetic, share) == label


def test_a_file_that_the_system_will_not_read_is_one_sentence():
    with pytest.raises(UserError, match=r"cannot be read: File name too long"):
        read_table("x" * 5000 + ".csv", ColumnMapping(), BOTH)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_level_of_none_or_all_is_refused(confidence):
    with pytest.raises(pydantic.ValidationError, match="confidence"):
        LawsConfig(confidence=confidence)
