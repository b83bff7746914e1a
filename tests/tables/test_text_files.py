"""Text files: compressions, marks and encodings, damage that names its line."""

import bz2
import gzip
import lzma

import pyarrow
import pytest

from gkd.tables import text_files


def zstandard(data):
    """Two frames, as of files joined by cat."""
    pack = pyarrow.Codec("zstd").compress
    return b"".join(pack(part).to_pybytes() for part in (data[:5], data[5:]))


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}
TEXT = "é\r\n\n\u2028x\x0by\n" * 3000 + "end"


def content(path):
    return "".join(text for _, text in text_files.lines(str(path)))


@pytest.mark.parametrize("suffix", ["", *PACK, ".GZ"])
def test_every_compression_gives_the_same_lines(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK.get(suffix.lower(), bytes)(TEXT.encode()))
    found = list(text_files.lines(str(path)))
    assert "".join(text for _, text in found) == TEXT
    assert found[-1] == (9001, "end")  # only \n ends a line: not U+2028, not \v


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"])
def test_marks_are_no_text(tmp_path, encoding):
    path = tmp_path / "a.txt"
    be = b"\xfe\xff" + TEXT.encode("utf-16-be")
    path.write_bytes(be if "mark" in encoding else TEXT.encode(encoding))
    assert content(path) == TEXT
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert content(tmp_path / "a.txt.gz") == TEXT


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_compression_is_one_line(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    whole = PACK[suffix](b"".join(str(i).encode() + b"\n" for i in range(9999)))
    for data in (whole[:-12], whole[: len(whole) // 2], b"no compression"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.txt{suffix}: damaged .* after line") as error:
            content(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\n\xff\n", "a.txt:3: not UTF-8 .invalid start byte.: save it as UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "a.txt:1: a NUL character: .* UTF-16 without its mark"),
        ("a\nb\n".encode("utf-16") + b"x", "a.txt:.: not UTF-16.* .truncated data.: save it as"),
        ("a\n".encode("utf-32"), "a.txt:1: a NUL character"),
        (gzip.compress(b"a", mtime=0), "a.txt is compressed by gzip: name it .gz"),
        (b"PK\x03\x04...", "a.txt is a zip archive or an Excel workbook: .*as CSV"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, data, message):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        content(path)


def test_whole_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("words\r\n\rmore".encode("utf-8-sig"))
    assert text_files.read_text(str(path)) == "words\n\rmore"
    with pytest.raises(FileNotFoundError, match="b.txt does not exist.*GKD_DATA"):
        text_files.read_text(str(tmp_path / "b.txt"))
