"""Local files: JSONL and TSV, gzipped or not, slices, subsets, one clear line for each fault."""

import gzip
import json

import numpy as np
import pytest

from gkd.data import sources


def jsonl(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl(tmp_path, name):
    path = jsonl(tmp_path / name, [{"q": "é\n1", "a": "1", "more": 3}, {"q": "2", "a": ""}])
    assert sources.read_rows(path, ("q", "a")) == [{"q": "é\n1", "a": "1"}, {"q": "2", "a": ""}]


def test_fields_that_hold_lists(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "x", "c": ["1", "2"]}])
    assert sources.read_rows(path, ("q",), lists=("c",)) == [{"q": "x", "c": ["1", "2"]}]
    for value in ("12", ["1", 2], None):
        path = jsonl(tmp_path / "a.jsonl", [{"c": value}])
        with pytest.raises(ValueError, match=":1: field 'c' is .*, needs a list of texts"):
            sources.read_rows(path, (), lists=("c",))
    with pytest.raises(ValueError, match="'q' is list, needs text"):
        sources.read_rows(jsonl(tmp_path / "a.jsonl", [{"q": ["x"]}]), ("q",))


def test_whole_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="a.txt: not UTF-8"):
        sources.read_text(str(tmp_path / "a.txt"))
    with pytest.raises(FileNotFoundError, match="b.txt does not exist"):
        sources.read_text(str(tmp_path / "b.txt"))


def test_tsv_with_and_without_a_header(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("q\ta\nx\\ny\t1\n\nz\\theta\t2\n")
    assert sources.read_rows(str(path), ("a", "q")) == [
        {"a": "1", "q": "x\\ny"},
        {"a": "2", "q": "z\\theta"},
    ]
    escaped = sources.read_rows(str(path), ("q",), escapes=True)
    assert escaped == [{"q": "x\ny"}, {"q": "z\theta"}]  # FLAN's files, where they say so
    named = sources.read_rows(str(path), ("second",), columns=("first", "second"))
    assert [row["second"] for row in named] == ["a", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": "x"}\n\n{"q": 1}\n', "a.jsonl:3: field 'q' is int, needs text"),
        ("a.jsonl", b'{"q": ""}\n{"a": "1", "b": ""}\n', "a.jsonl:2: no field 'q'.* has a, b"),
        ("a.jsonl", b'{"q": "x"}\n{"q": "x"\n', "a.jsonl:2: malformed JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: list, needs an object"),
        ("a.jsonl", b'{"q": "\xff"}\n', "a.jsonl:.: not UTF-8"),
        ("a.tsv", b"q\ta\n1\t2\n1\n", "a.tsv:3: 1 columns, needs 2"),
        ("a.tsv", b"a\tb\n1\t2\n", "a.tsv:2: no field 'q'; the row has a, b"),
        ("a.jsonl", b'{"q": "a"}\n{"q": "cut \\ud83d"}\n',
         r"a.jsonl:2: field 'q' is no valid text: character 4 is '.ud83d', half of a surrogate"),
        ("a.jsonl", b'{"q": ' + b"[" * 100_000 + b"\n", "a.jsonl:1: malformed JSON"),
        ("a.tsv", b"\xff\xfeq\x00", "a.tsv:1: not UTF-8 .*: save it as UTF-8"),
        ("a.txt", b"", "neither .jsonl nor .tsv"),
        ("a.jsonl.gz", b"not gzip", "damaged gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"q": "x"}\n' * 99, mtime=0)[:-12], "damaged gzip"),
    ],
)  # fmt: skip
def test_faults_name_file_line_and_field(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        sources.read_rows(str(path), ("q",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    def read(name, text, columns=None):
        path = tmp_path / f"{name}{suffix}"
        data = text.encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if suffix else data)
        return sources.read_rows(str(path), ("q",), columns)

    assert read("a.tsv", "q\ta\nx\t1\n") == [{"q": "x"}]
    assert read("b.tsv", "x\t1\n", ("q", "a")) == [{"q": "x"}]
    assert read("c.tsv", '"q"\ta\n"x"\t1\n') == [{"q": "x"}]
    two = '{"q": "x"}\n\ufeff{"q": "\ufeffy"}\n'  # joined files; a mark in a text is the text's
    assert read("a.jsonl", two) == [{"q": "x"}, {"q": "\ufeffy"}]
    (tmp_path / "a.txt").write_bytes("words".encode("utf-8-sig"))
    assert sources.read_text(str(tmp_path / "a.txt")) == "words"


def test_rows_made_in_python_are_checked_too():
    source = sources.rows_source(lambda split: [{"q": "a"}, {"q": "\ud800"}], ("q",), ("dev",))
    with pytest.raises(ValueError, match="split 'dev', row 1: field 'q' is no valid text"):
        source.get_dataset("dev", shuffle=False)


def test_not_utf8_names_its_own_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "x"}\n{"q": "\xff"}\n')
    with pytest.raises(ValueError, match="a.jsonl:2: not UTF-8"):
        sources.read_rows(str(path), ("q",))


def test_missing_file_and_the_directory_of_relative_paths(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="/no/such.jsonl does not exist.*GKD_DATA"):
        sources.read_rows("/no/such.jsonl", ("q",))
    monkeypatch.setenv("GKD_DATA", "/from/environment")
    assert sources.resolved("a.tsv") == "/from/environment/a.tsv"
    assert sources.resolved("a.tsv", "/given") == "/given/a.tsv"
    assert sources.resolved("/absolute/a.tsv", "/given") == "/absolute/a.tsv"
    monkeypatch.delenv("GKD_DATA")
    assert sources.resolved("a.tsv") == "a.tsv"


def values(source, split):
    dataset = source.get_dataset(split, shuffle=False)
    return [int(row["q"]) for row in dataset.as_numpy_iterator()]


def test_slices_and_subsets(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": str(i)} for i in range(100)])
    files = {"train": f"{path}[:-20]", "validation": f"{path}[-20:]", "test": path}
    source = sources.files_source(files, ("q",))
    assert values(source, "train") == list(range(80))
    assert values(source, "validation") == list(range(80, 100))
    assert values(source, "test") == list(range(100))
    few, more = (
        values(sources.files_source(files, ("q",), max_examples=n), "train") for n in (10, 40)
    )
    assert (len(few), len(more)) == (10, 40)
    assert few == sorted(few) != list(range(10))
    assert set(few) < set(more) < set(range(80))
    # Spread over the file: the mean of 40 of 0 … 79 is 39.5 ± 3.7 · 0.7.
    assert abs(np.mean(more) - 39.5) < 8
    assert values(sources.files_source(files, ("q",), max_examples=10), "validation") == list(
        range(80, 100)
    )


def test_empty_slice_is_an_error(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "1"}])
    with pytest.raises(ValueError, match=r"a.jsonl\[5:\] has no rows"):
        values(sources.files_source({"train": f"{path}[5:]"}, ("q",)), "train")


def test_the_shared_files_are_read_whole(shared):
    data = shared / "data"
    columns = ("question", "answer", "rationale")
    counts = {  # from the data's READMEs
        ("tatoeba_en_de/train.jsonl", ("en", "de"), None): 48486,
        ("tatoeba_en_de/val.jsonl", ("en", "de"), None): 1279,
        ("debian_synopsis/val.jsonl.gz", ("document", "summary"), None): 691,
        ("gsm8k/test.jsonl", ("question", "answer"), None): 1319,
        ("flan_cot/gsm8k_train.tsv.gz", columns, columns): 7473,
        ("mgsm_en_de/mgsm_de.tsv", ("question", "answer"), ("question", "answer")): 250,
        ("quickstart/translate.val.jsonl", ("input", "target"), None): 64,
    }
    for (name, fields, names), rows in counts.items():
        assert len(sources.read_rows(str(data / name), fields, names)) == rows


def test_permutation_is_pinned():
    # From Philox's raw bits, which NumPy promises to keep; sorted here by Python.
    for words in ((0, 0), (0, 1), (7, 3)):
        bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(50).tolist()
        assert sources.permutation(50, *words).tolist() == sorted(range(50), key=bits.__getitem__)
    assert sources.permutation(8, 0, 0).tolist() != sources.permutation(8, 0, 1).tolist()
