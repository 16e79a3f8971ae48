"""Text files as people have them: read without a change of any text, or refused with line and remedy."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pytest

from trainer.data.texts.config import CsvFormat, file_kind, file_problems
from trainer.data.texts.tables import TextColumns, read_table
from trainer.errors import UserError

COLUMNS = TextColumns(("text",), None, "label")
NUMBERED = TextColumns(("0",), None, "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))


def written(folder: Path, content: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, columns: TextColumns = COLUMNS, **csv_format) -> list[tuple]:
    table = read_table(path, "data.train", CsvFormat(**csv_format), columns)
    return [tuple(row.values()) for row in table]


def refused(path: Path, columns: TextColumns = COLUMNS, **csv_format) -> str:
    with pytest.raises(UserError) as error:
        read(path, columns, **csv_format)
    assert len(error.value.lines) <= 3
    assert error.value.lines[0].startswith(f"data.train={path}")
    return str(error.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_detected(tmp_path: Path, delimiter: str) -> None:
    others = "".join({",", ";", "|"} - {delimiter})
    rows = [("text", "label"), (f"one {others} two", "a"), ("three", "b")]
    path = written(tmp_path, "\n".join(delimiter.join(row) for row in rows))
    assert read(path) == [(f"one {others} two", "a", 2), ("three", "b", 3)]
    assert read(written(tmp_path, f"good{delimiter}1\nbad{delimiter}0\n"), NUMBERED, header=False) == [
        ("good", "1", 1),
        ("bad", "0", 2),
    ]


def test_a_delimiter_that_is_named_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "text;label\na,b;c\n")
    assert read(path, delimiter="semicolon") == [("a,b", "c", 2)]
    message = refused(path, delimiter="comma")
    assert "no column text" in message
    assert "its first line is: text;label" in message
    assert "data.delimiter=semicolon" in message
    assert read(written(tmp_path, "text^label\na^c\n"), delimiter="^") == [("a", "c", 2)]


def test_words_for_missing_values_are_texts_and_labels(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "NaN", "n/a", "nan", "<NA>", "1", "1.0", "007"]
    path = written(tmp_path, "text,label\n" + "".join(f"{word},{word}\n" for word in words))
    assert [row[:2] for row in read(path)] == [(word, word) for word in words]


def test_texts_of_quoted_fields_are_those_that_were_written(tmp_path: Path) -> None:
    content = 'text,label\n"a, b",x\n"he said ""no""",y\n"two\nlines",z\n5" disk,x\n'
    assert read(written(tmp_path, content)) == [
        ("a, b", "x", 2),
        ('he said "no"', "y", 3),
        ("two\nlines", "z", 4),
        ('5" disk', "x", 6),
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text\tlabel\nplain\ta\n"Quoted" start\tb\n', 3),
        ('text\tlabel\nplain\ta\n"never closed\tb\nnext\tc\n', 3),
        ('text\tlabel\nplain\ta\nother\tb\n"all of it"\tc\n', 4),
        ('text,label\n"a \\" b",x\n', 2),
    ],
)
def test_quotes_that_may_be_text_are_refused_or_kept(tmp_path: Path, content: str, line: int) -> None:
    path = written(tmp_path, content)
    message = refused(path)
    assert f"line {line}: " in message
    assert "data.quoting=none" in message
    literal = [tuple(row.split("," if "," in row else "\t")) for row in content.splitlines()[1:]]
    assert [row[:2] for row in read(path, quoting="none")] == literal


def test_quotes_around_all_texts_are_syntax(tmp_path: Path) -> None:
    assert read(written(tmp_path, '"text","label"\n"one","a"\n"two","b"\n')) == [("one", "a", 2), ("two", "b", 3)]
    mixed = written(tmp_path, 'text,label\n"one",a\ntwo,b\n')
    assert [row[0] for row in read(mixed, quoting="minimal")] == ["one", "two"]


def test_ragged_rows_name_their_line(tmp_path: Path) -> None:
    message = refused(written(tmp_path, "text,label\none,a\n\ntwo, three,b\n"))
    assert "line 4: 3 fields, where 2 are expected (delimiter: comma)" in message
    assert "data.quoting" in message
    assert "line 3: 1 field, where 2" in refused(written(tmp_path, "text,label\none,a\ntwo\n"))
    assert "line 2: ends with a comma too many" in refused(written(tmp_path, "text,label\none,a,\n"))
    assert read(written(tmp_path, "text,label,\none,a,\n")) == [("one", "a", 2)]


def test_a_missing_header_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a great film,1\na dull film,0\n")
    message = refused(path)
    assert "its first line is: a great film,1" in message
    assert "data.header=false data.text=0 data.label=1" in message
    assert read(path, NUMBERED, header=False) == [("a great film", "1", 1), ("a dull film", "0", 2)]
    assert "numbered from 0 to 1" in refused(path, TextColumns(("2",), None, "1"), header=False)


def test_another_encoding_names_line_and_remedy(tmp_path: Path) -> None:
    content = "text,label\nplain,a\ncafé,b\n"
    path = written(tmp_path, content.encode("cp1252"))
    message = refused(path)
    assert "line 3: byte 0xe9 is not utf-8" in message
    assert "data.encoding" in message
    assert read(path, encoding="cp1252")[1][0] == "café"
    wide = written(tmp_path, content.encode("utf-16"))
    assert "utf-16" in refused(wide)
    assert read(wide, encoding="utf-16")[1] == ("café", "b", 3)
    assert read(written(tmp_path, b"\xef\xbb\xbf" + content.encode()))[1][0] == "café"


def test_compression_follows_from_the_ending(tmp_path: Path) -> None:
    content = b"text,label\none,a\ntwo,b\n"
    packed = {".gz": gzip.compress(content), ".xz": lzma.compress(content)}
    packed[".zst"] = pyarrow.compress(content, codec="zstd", asbytes=True)
    for ending, data in packed.items():
        path = written(tmp_path, data, f"rows.csv{ending}")
        assert file_problems("data.train", str(path), ("csv",)) == []
        assert read(path) == [("one", "a", 2), ("two", "b", 3)]
        assert "cannot be read" in refused(written(tmp_path, content, f"plain.csv{ending}"))
        cut = written(tmp_path, data[:-6], f"cut.csv{ending}")
        assert "cannot be read" in refused(cut)
    assert file_kind(Path("rows.parquet.gz")) is None


def test_json_lines_and_an_array_hold_the_same(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "label": 1, "more": {"x": []}},
        {"text": "null", "label": True},
        {"text": "b", "label": "c"},
    ]
    lines = written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl")
    array = written(tmp_path, json.dumps(rows, indent=1), "rows.json")
    assert read(lines) == [("one", "1", 1), ("null", "True", 2), ("b", "c", 3)]
    assert read(array) == [("one", "1", None), ("null", "True", None), ("b", "c", None)]


def test_bad_json_names_its_line(tmp_path: Path) -> None:
    good = '{"text": "one", "label": 1}\n'
    assert "line 3: no JSON" in refused(written(tmp_path, f"{good}{good}{{oops\n", "rows.jsonl"))
    assert "row 2 (line 2) is an array" in refused(written(tmp_path, f"{good}[1]\n", "rows.jsonl"))
    assert "line 4: no JSON" in refused(written(tmp_path, f"[\n{good},\n]", "rows.json"))
    number = refused(written(tmp_path, f'{good}\n{{"text": 5, "label": 1}}\n', "rows.jsonl"))
    assert "row 2 (line 3): the text is of type int" in number
    assert "no column text in its first row" in refused(written(tmp_path, '{"txt": "a"}\n', "rows.jsonl"))


def test_bad_rows_are_counted_as_in_the_file(tmp_path: Path) -> None:
    content = 'text,label\n"one\ntwo",a\n  ,b\n'
    assert "row 2 (line 4): the text is empty" in refused(written(tmp_path, content))
    assert "holds no rows" in refused(written(tmp_path, "text,label\n"))


def test_several_text_columns_are_joined(tmp_path: Path) -> None:
    path = written(tmp_path, "title,body,label\nHead, tail ,a\n,only,b\n")
    columns = TextColumns(("title", "body"), None, "label")
    assert read(path, columns) == [("Head tail", "a", 2), ("only", "b", 3)]
    both_empty = written(tmp_path, "title,body,label\n,,b\n")
    assert "row 1 (line 2): the text is empty" in refused(both_empty, columns)


def test_long_texts_are_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    assert read(written(tmp_path, f"text,label\n{long},a\n"))[0][0] == long


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "text,label\none,a\n")
    first = read(path)
    monkeypatch.setattr("trainer.data.texts.tables.read_rows", None)
    assert read(path) == first
    written(tmp_path, "text,label\ntwo,a\n")
    with pytest.raises(TypeError):
        read(path)


def test_formats_that_cannot_be_are_named() -> None:
    assert "one character" in str(CsvFormat(delimiter="::").problems("data.")[0])
    assert "no such encoding" in str(CsvFormat(encoding="utf-9").problems("data.")[0])
    assert CsvFormat(delimiter="tab").character == "\t"
