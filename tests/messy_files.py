"""Small files as people publish them, each with a quirk, and what must become of them.

Every file holds the same six rows of two features and a target, or is to be refused with a message.
"""

import bz2
import gzip
import lzma
import re
from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "blank": " "}
NEWLINES = {"unix": "\n", "windows": "\r\n", "mac": "\r"}
ROWS = [
    (1.5, -20.0, 0.25),
    (2.0, 35.5, 1.0),
    (-0.125, 40.0, -3.5),
    (7.0, 1e-3, 2.0),
    (3.25, 1200.0, 0.0),
    (0.0, -7.75, 5.5),
]


class Case(NamedTuple):
    """A file, the options to read it with, and the rows that it has; or the refusal."""

    name: str
    content: bytes
    options: Mapping[str, Any] = MappingProxyType({})
    rows: Any = ROWS
    refusal: str = ""
    suffix: str = ".csv"


def table(rows=ROWS, header=("size", "age", "target"), separator=",", newline="\n", decimal="."):
    """The text of a table."""
    lines = [] if header is None else [separator.join(header)]
    for row in rows:
        cells = [cell if isinstance(cell, str) else repr(cell) for cell in row]
        if decimal == ",":
            cells = [cell.replace(".", ",") for cell in cells]
        lines.append(separator.join(cells))
    return newline.join(lines) + newline


def utf(text):
    return text.encode()


def dialects():
    for (name, separator), (system, newline) in product(SEPARATORS.items(), NEWLINES.items()):
        text = table(separator=separator, newline=newline)
        yield Case(f"{name}, {system} lines", utf(text))
        bare = table(header=None, separator=separator, newline=newline)
        yield Case(f"{name}, {system} lines, no header", utf(bare), {"target": "x3"})
    for (name, separator), encoding in product(
        SEPARATORS.items(), ("utf-8-sig", "latin-1", "cp1252", "utf-16")
    ):
        text = table(header=("größe", "âge", "target"), separator=separator)
        yield Case(f"{name}, {encoding}", text.encode(encoding))
        explicit = {"encoding": encoding, "separator": separator}
        yield Case(f"{name}, {encoding} as said", text.encode(encoding), explicit)
    for name, separator in SEPARATORS.items():
        if separator != ",":
            text = table(separator=separator, decimal=",")
            yield Case(f"{name}, decimal comma", utf(text))
            yield Case(f"{name}, decimal comma as said", utf(text), {"decimal": ","})
            bare = table(header=None, separator=separator, decimal=",")
            yield Case(f"{name}, decimal comma, no header", utf(bare), {"target": "x3"})
    for name, (pack, suffix) in {
        "gzip": (gzip.compress, ".gz"),
        "bzip2": (bz2.compress, ".bz2"),
        "xz": (lzma.compress, ".xz"),
    }.items():
        for separator in (",", "\t"):
            text = utf(table(separator=separator))
            yield Case(f"{name} of {separator!r}", pack(text), suffix=f".csv{suffix}")
        yield Case(f"{name} cut short", pack(text)[:-9], refusal="not a", suffix=f".csv{suffix}")
    quoted = "\n".join(",".join(f'"{cell}"' for cell in row) for row in ROWS)
    yield Case("quoted numbers", utf(f'"size","age","target"\n{quoted}\n'))
    yield Case("blanks around cells", utf(table(separator=" , ")))
    yield Case("aligned with blanks", utf(table(separator="    ")))
    yield Case("blanks and tabs", utf(table(separator=" \t ")), {"separator": " "})
    yield Case(
        "lines that begin with blanks", utf("  " + table(separator="  ").replace("\n", "\n  "))
    )
    yield Case("excel's sep=", utf("sep=;\n" + table(separator=";")))
    yield Case("no newline at the end", utf(table().rstrip()))
    yield Case("blank lines at the end", utf(table() + "\n\n,,\n"))
    yield Case("blank lines at the top", utf("\n\n" + table()))
    yield Case("signs and exponents", utf(table([("+1.5E+00", "-2e1", ".25"), *ROWS[1:]])))
    yield Case("as text", utf(table()), suffix=".txt")
    yield Case("as data", utf(table(separator=" ")), suffix=".data")
    yield Case("without a suffix", utf(table()), suffix="")


def columns():
    def wide(header, *extra, place=0):
        rows = [
            (*row[:place], *(cells[k] for cells in extra), *row[place:])
            for k, row in enumerate(ROWS)
        ]
        return utf(table(rows, header))

    index = [str(k) for k in range(6)]
    words = ["a b", "c", "", "NA", "x;y", "z"]
    names = ("size", "age", "target")
    yield Case("unnamed index", wide(("", *names), index))
    yield Case("two unnamed columns", wide(("", "", *names), index, index))
    yield Case("unnamed words", wide(("", *names), words))
    yield Case("unnamed last column", wide((*names, ""), index, place=3))
    yield Case("separator at the end of rows", utf(table().replace("\n", ",\n")))
    yield Case("names of rows without a header", wide(names, [f"r{k}" for k in range(6)]))
    yield Case("unused words", wide(("id", *names), words), {"ignore": ("id",)})
    yield Case("chosen columns", wide(("id", *names), words), {"features": ("size", "age")})
    unused = {"features": ("size", "age")}
    yield Case("unused repeated", wide(("id", "id", *names), index, words), unused)
    same = [repr(row[0]) for row in ROWS]
    yield Case("repeated with equal cells", wide(("size", *names), same))
    told = 'row 1, column "size" appears twice with different'
    yield Case("repeated with other cells", wide(("size", *names), index), refusal=told)
    yield Case("unused infinities", wide(("id", *names), ["inf"] * 6), {"ignore": ("id",)})
    yield Case("target in front", utf(table([row[::-1] for row in ROWS], names[::-1])), unused)
    yield Case("words as names of columns", wide(("Größe der Stadt", *names), words), unused)
    text = table(header=("1990", "2000", "target"))
    yield Case("years as names", utf(text))
    bare = utf(table(header=None))
    yield Case("no header, said", bare, {"header": False, "target": "x3"})
    told = r'no column "target" \(it has x1, x2, x3\)'
    yield Case("no header, no target", bare, refusal=told)
    told = 'no column "targt", did you mean "target"'
    yield Case("misspelt target", utf(table()), {"target": "targt"}, refusal=told)
    yield Case(
        "misspelt feature", utf(table()), {"features": ("sise",)}, refusal='did you mean "size"'
    )
    yield Case("misspelt weights", utf(table()), {"weights": "w"}, refusal='no column "w"')
    yield Case(
        "ignored what is not there", utf(table()), {"ignore": ("id",)}, refusal='column "id"'
    )
    yield Case(
        "target as feature", utf(table()), {"features": ("target",)}, refusal="a feature too"
    )
    yield Case("no feature", utf("target\n1\n2\n"), refusal="there is no feature column")


def comments():
    for mark in "#%":
        for name, separator in SEPARATORS.items():
            text = table(separator=separator)
            yield Case(f"{mark} at the top, {name}", utf(f"{mark} made by hand\n{mark}\n{text}"))
        header, _, rest = table().partition("\n")
        yield Case(f"header behind {mark}", utf(f"{mark} {header}\n{rest}"))
        yield Case(f"title and header behind {mark}", utf(f"{mark}me\n{mark} {header}\n{rest}"))
        inside = f"{mark} one\n{header}\n{mark} two, three\n{rest}{mark} four\n"
        yield Case(f"{mark} between rows", utf(inside))
    yield Case("// as said", utf("// title, of, all\n" + table()), {"comment": "//"})
    yield Case("title as said", utf("Title,,\nof 2020\n" + table()), {"skip": 2})
    yield Case("title", utf("Prices of 2020\n" + table()), refusal=r"row 2: 3 value\(s\) where")


def missing():
    gap = [ROWS[0], ("CELL", *ROWS[1][1:]), *ROWS[2:]]
    known = [row[0] for k, row in enumerate(ROWS) if k != 1]
    filled = [ROWS[0], (sum(known) / 5, *ROWS[1][1:]), *ROWS[2:]]
    dropped = [ROWS[0], *ROWS[2:]]
    for cell in ("", "NA", "n/a", "NaN", "null", "None", "?", ".", "-", "missing"):
        content = utf(table(gap).replace("CELL", cell))
        yield Case(f"dropped {cell!r}", content, {"missing": "drop"}, dropped)
        yield Case(f"mean for {cell!r}", content, {"missing": "mean"}, filled)
        told = (
            f'row 3, column "size": missing value.*{re.escape(cell)}(.|\n)*set `missing` = "drop"'
        )
        yield Case(f"refused {cell!r}", content, refusal=told)
    target = utf(table([(*ROWS[0][:2], ""), *ROWS[1:]]))
    yield Case("no target, dropped", target, {"missing": "drop"}, ROWS[1:])
    told = 'row 2, column "target": missing value, for which a mean cannot stand'
    yield Case("no target, mean", target, {"missing": "mean"}, refusal=told)
    row = utf(table().replace("\n", "\n\n", 3))
    yield Case("blank lines between rows", row, refusal=r"row 2: 0 value\(s\)")
    yield Case("blank lines, dropped", row, {"missing": "drop"})
    every = utf("size,age,target\n?,1,2\n3,,4\n")
    yield Case(
        "every row", every, {"missing": "drop"}, refusal="every one of its 2 rows has a missing"
    )
    yield Case("a whole column", utf("size,age,target\n?,1,2\n?,5,4\n"), {"missing": "mean"},
               refusal='column "size" has no value to take the mean of')  # fmt: skip


def refused():
    for name, cell, told in [
        ("word", "tall", 'not a number: "tall"'),
        ("unit", "5 cm", 'not a number: "5 cm"'),
        ("currency", "$5", r'not a number: "\$5"'),
        ("per cent", "5%", 'not a number: "5%"'),
        ("date", "2020-01-01", 'not a number: "2020-01-01"'),
        ("truth value", "True", 'not a number: "True"'),
        ("thousands", '"1,234"', 'not a number: "1,234"'),
        ("underscore", "1_000", 'not a number: "1_000"'),
        ("minus of typography", "−5", 'not a number: "−5"'),
        ("no-break space", "1\xa0000", "not a number"),
        ("wide digits", "１２", 'not a number: "１２"'),
        ("hexadecimal", "0x1F", 'not a number: "0x1F"'),
        ("infinity", "inf", 'not a finite number: "inf"'),
        ("overflow", "1e400", 'not a finite number: "1e400"'),
        ("underflow", "1e-400", 'too small for float64: "1e-400"'),
        ("complex number", "1+2j", r'not a number: "1\+2j"'),
        ("fraction", "1/2", 'not a number: "1/2"'),
        ("range", "3-5", 'not a number: "3-5"'),
        ("bound", "<0.1", 'not a number: "<0.1"'),
    ]:
        content = utf(table([ROWS[0], (cell, *ROWS[1][1:]), *ROWS[2:]]))
        yield Case(name, content, refusal=f'row 3, column "size": {told}')
        yield Case(f"{name}, missing dropped", content, {"missing": "drop"}, refusal=told)
    grouped = utf("size;target\n1,234;2\n5,678;3\n")
    hint = r'not a number: "1,234" \(for decimal commas, set decimal = ","\)'
    yield Case("thousands, semicolons", grouped, refusal=hint)
    decimal = {"decimal": ","}
    as_said = [(1.234, 2.0), (5.678, 3.0)]
    yield Case("thousandths, semicolons", grouped, decimal, as_said)
    yield Case("decimal comma between commas", utf(table(decimal=",")), refusal="where the header")
    yield Case("short row", utf(table() + "1,2\n"), refusal=r"row 8: 2 value\(s\) where the header")
    yield Case(
        "long row", utf(table() + "1,2,3,4\n"), refusal=r"row 8: 4 value\(s\) where the header"
    )
    yield Case(
        "open quote", utf(table() + '1,"2,3\n4,5,6\n'), refusal="row 8: .*is a quote not closed"
    )
    yield Case("cell over two lines", utf(table() + '1,"2\n3",4\n'), refusal="more than one line")
    yield Case("header only", b"size,age,target\n", refusal=r"has 1 row\(s\)")
    yield Case("empty", b"", refusal=r"has 0 row\(s\)")
    yield Case("comments only", b"# one\n# two\n", refusal=r"has 0 row\(s\)")
    yield Case("binary", bytes(range(256)), refusal="not a CSV file in UTF-8")
    yield Case("utf-16 cut", table().encode("utf-16")[:-1], refusal="not a CSV file")
    latin = table(header=("größe", "age", "target")).encode("latin-1")
    yield Case("latin as utf-8", latin, {"encoding": "utf-8"}, refusal="not a CSV file in utf-8")
    yield Case("unknown encoding", utf(table()), {"encoding": "utf-9"}, refusal="unknown encoding")
    yield Case("web page", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", refusal="no column")
    yield Case("zip under another name", b"PK\x03\x04\x00\x00", refusal="not a CSV file")
    for suffix in (".npz", ".mat", ".h5", ".parquet", ".svm"):
        yield Case(f"text as {suffix}", utf(table()), refusal="not an? ", suffix=suffix)


def categories():
    words = ["b", "a", "b", "c", "a", "b"]
    rows = [(word, *row[1:]) for word, row in zip(words, ROWS, strict=True)]
    hot = [
        (*(float(word == each) for each in "abc"), *row[1:])
        for word, row in zip(words, ROWS, strict=True)
    ]
    content = utf(table(rows))
    yield Case("words", content, {"categories": ("size",)}, hot)
    yield Case("all words", content, {"categories": "text"}, hot)
    without = [row[1:] for row in hot]
    yield Case("words less one", content, {"categories": "text", "drop_first": True}, without)
    yield Case("unwanted words", content, refusal='row 2, column "size": not a number: "b"')
    gone = utf(table([("", *rows[0][1:]), *rows[1:]]))
    options = {"categories": "text", "missing": "drop"}
    yield Case("words and gaps, dropped", gone, options, hot[1:])
    yield Case("words and gaps", gone, {"categories": "text"}, refusal="missing value")
    mean = [(0.4, 0.4, 0.2, *ROWS[0][1:]), *hot[1:]]
    yield Case("words and gaps, mean", gone, {"categories": "text", "missing": "mean"}, mean)
    codes = [(float(k % 2), *row[1:]) for k, row in enumerate(ROWS)]
    flags = [(float(k % 2 == 0), float(k % 2 == 1), *row[1:]) for k, row in enumerate(ROWS)]
    yield Case("codes as words", utf(table(codes)), {"categories": ("size",)}, flags)


CASES = [
    *dialects(),
    *columns(),
    *comments(),
    *missing(),
    *refused(),
    *categories(),
]
