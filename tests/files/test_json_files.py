"""JSON and settings from outside: what is accepted, and one line for everything else."""

import pathlib

import pytest

from gkd.files.json_files import Field, check_fields, check_value, parse_json, read_json

FIELDS = {
    "layers": Field(kinds=(int,), least=1, most=1000, required=True),
    "rate": Field(kinds=(float,), least=0, most=1),
    "activation": Field(kinds=(str,), choices=("relu", "gelu")),
    "note": Field(kinds=(str,), none=True),
}


def refused(message, function, *arguments, **more):
    with pytest.raises(ValueError, match=message) as error:
        function(*arguments, **more)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_document_and_a_byte_order_mark_are_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, "[["]}', "f.json", dict) == {"a": [1, "[["]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f.json is empty"),
        (b'{"a": 1', "f.json is not JSON, damaged or truncated"),
        (b"\xff{}", "f.json is not UTF-8 .byte 0."),
        (b"[1]", "f.json holds a list, not an object"),
        (b'{"a": 1, "a": 2}', "f.json has the key 'a' twice"),
        (b"[" * 100_000, "f.json is nested more than 100 levels deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "f.json is nested more than 100"),
    ],
)
def test_junk_is_one_line(content, message):
    refused(message, parse_json, content, "f.json", dict)


def test_a_file_is_named(tmp_path: pathlib.Path):
    (tmp_path / "x.json").write_bytes(b"{")
    refused("x.json is not JSON", read_json, tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no layers"),
        ({"layers": 0}, "layers is 0: use 1 or more"),
        ({"layers": 10**7}, "layers is 10000000: use 1000 or less"),
        ({"layers": True}, "layers is True: a whole number is needed"),
        ({"layers": "2"}, "layers is '2': a whole number is needed"),
        ({"layers": 2, "rate": float("nan")}, "rate is nan: a number is needed"),
        ({"layers": 2, "rate": None}, "rate is None: a number is needed"),
        ({"layers": 2, "activation": "tanh"}, "activation is 'tanh': choose one of 'relu', 'gelu'"),
        ({"layers": 2, "note": 3}, "note is 3: a string is needed"),
        ({"layers": ["x" * 10_000]}, "a whole number is needed"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(values, message):
    refused(message, check_fields, values, FIELDS, "c.json")


def test_values_that_fit_pass():
    check_fields({"layers": 2, "rate": 1, "note": None, "more": object()}, FIELDS, "c.json")
    check_value([1, 2], Field(kinds=(list,), least=1, most=2), "x")


def test_unknown_names_are_refused_where_asked():
    refused("unknown field 'more'", check_fields, {"layers": 2, "more": 1}, FIELDS, "c", False)
