"""Fields of rows: nested ones, numbers as texts, references, suggestions for missing names."""

import pytest

from gkd.tables import fields
from gkd.tables.fields import WrittenNumber


def test_dots_lead_into_objects_unless_a_name_has_them():
    row = {"a": {"b": {"c": "deep"}, "b.c": "beside"}, "a.b": {"c": "above"}, "x": {"y.z": "1"}}
    assert fields.text_of(row, "a.b.c", "f:1") == "above"
    del row["a.b"]
    assert fields.text_of(row, "a.b.c", "f:1") == "beside"
    del row["a"]["b.c"]
    assert fields.text_of(row, "a.b.c", "f:1") == "deep"
    assert fields.text_of(row, "x.y.z", "f:1") == "1"
    answers = {"answers": [{"text": "one"}, {"text": "two"}], "other": {"text": ["three"]}}
    assert fields.references_of(answers, "answers.text", "f:1") == ["one", "two"]
    assert fields.references_of(answers, "other.text", "f:1") == ["three"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""), ("é", "é"), (0, "0"), (-12, "-12"), (10**30, "1" + "0" * 30), (1.5, "1.5"),
        (2.0, "2.0"), (WrittenNumber("1.50"), "1.50"), (WrittenNumber("1E-3"), "1E-3"),
        (True, "true"), (False, "false"), ("ä".encode(), "ä"),
    ],
)  # fmt: skip
def test_a_value_as_text(value, text):
    assert fields.text_of({"q": value}, "q", "f:1") == text
    assert fields.references_of({"q": value}, "q", "f:1") == [text]
    assert fields.texts_of({"q": [value, "x"]}, "q", "f:1") == [text, "x"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "f:1: field 'q' is null, needs text: correct or drop the row"),
        (float("nan"), "f:1: field 'q' is nan, needs text or a number"),
        ([], "f:1: field 'q' is an empty list, needs at least one text"),
        (["a", None], "f:1: field 'q', item 2 is null, needs text"),
        ([["a"]], "f:1: field 'q', item 1 is a list, needs text"),
        ({"a": "b"}, "f:1: field 'q' is an object, needs text"),
        (b"\xff", "f:1: field 'q' is bytes that are not UTF-8"),
        ("cut \ud83d", "f:1: field 'q' is no valid text: character 4 is .* half of a surrogate"),
    ],
)
def test_what_is_no_text_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        fields.references_of({"q": value}, "q", "f:1")


def test_a_list_is_no_single_text():
    with pytest.raises(ValueError, match="field 'q' is a list, needs text"):
        fields.text_of({"q": ["a"]}, "q", "f:1")
    with pytest.raises(ValueError, match="field 'q' is str, needs a list of texts"):
        fields.texts_of({"q": "a"}, "q", "f:1")


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"input": "", "target": ""}, "inputs", "did you mean 'input'[?]; the row has input, tar"),
        ({"Input": "", "out put": ""}, "input", "did you mean 'Input'[?]"),
        ({"Input": "", "Out Put": ""}, "out_put", "did you mean 'Out Put'[?]"),
        ({" target": ""}, "target", "did you mean ' target'[?]"),
        ({"translation": {"en": "", "de": ""}}, "de", "did you mean 'translation.de'[?]"),
        ({"translation": {"en": "", "de": ""}}, "translation.dee", "mean 'translation.de'[?]"),
        ({"answers": [{"text": "a"}]}, "text", "did you mean 'answers.text'[?]"),
        ({"question": "", "x": ""}, "summary", " the row has question, x$"),
        ({"input;target": ""}, "input", "set DELIMITER=';'"),
        ({str(i): "" for i in range(99)}, "q", "the row has 0, 1, .* 19, …$"),
        ({}, "q", "the row has no fields"),
        ({"a": "text"}, "a.b", "; the row has a$"),
    ],
)
def test_a_missing_field_suggests_the_likely_one(row, field, message):
    with pytest.raises(ValueError, match=f"^f:1: no field '{field}'.*{message}") as error:
        fields.value_of(row, field, "f:1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": None}, "f:1: no field 'a.b.c': 'a' is null: correct or drop the row"),
        ({"a": {"b": []}}, "f:1: no field 'a.b.c': 'a.b' is an empty list: correct or drop"),
        ({"a": [{"b": {"c": "x"}}, {"b": None}]}, "no field 'a.b.c': item 2 of 'a.b' has none"),
        ({"a\nb": 1, "\x1b[31m": 2}, r"f:1: no field 'a.b.c'.*the row has 'a\\nb', '\\x1b\[31m'$"),
    ],
)
def test_why_a_nested_field_is_missing(row, message):
    with pytest.raises(ValueError, match=message):
        fields.text_of(row, "a.b.c", "f:1")
