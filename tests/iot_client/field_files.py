# ruff: noqa: E501 - a file, a line
"""Files as loggers, programs and people write them, small, with what has to come out of each.

The forms are those of public files and bug reports: UCI's air quality, HOBO and Campbell loggers, Excel in Europe,
PowerShell, pandas, R, OpenTX, power cuts. Values are invented.
"""

from dataclasses import dataclass, field

A, B, Y = (20.5, 21.25, 19.0, 22.75), (50.0, 48.5, 51.0, 47.25), (100.0, 101.5, 98.0, 103.25)
ROWS = tuple(zip(A, B, Y, strict=True))


@dataclass(frozen=True)
class FieldFile:
    name: str
    data: bytes
    rows: tuple[tuple[float | None, ...], ...] = ROWS
    """Features and label of each row that must come out; None where a value is missing."""
    label: str | None = "y"
    features: str = "a,b"
    """As --features has them; empty if the columns' look decides."""
    used: tuple[str, ...] = ()
    """Which columns are used then."""
    options: tuple[str, ...] = ()
    classes: str = ""
    drops: dict[str, int] = field(default_factory=dict)
    """Rows that must be told as dropped, by reason."""
    values: dict[str, int] = field(default_factory=dict)
    """Values that must be told as missing, by column."""
    skipped: dict[str, int] = field(default_factory=dict)


def table(
    delimiter: str = ",",
    *,
    head: str | None = None,
    form: str = "{:.2f}",
    end: str = "\n",
    tail: str = "",
    comma: bool = False,
) -> str:
    lines = [delimiter.join("aby") if head is None else head]
    for row in ROWS:
        said = [form.format(value) for value in row]
        lines.append(delimiter.join(each.replace(".", ",") if comma else each for each in said) + tail)
    return end.join([*lines, ""])


def text(name: str, data: str, *, encoding: str = "utf-8", **fields: object) -> FieldFile:
    return FieldFile(name, data.encode(encoding), **fields)  # type: ignore[arg-type]


def _rows(delimiter: str, *columns: str) -> list[str]:
    """Lines of the rows, each from a form with {a}, {b}, {y} and {i}."""
    return [delimiter.join(columns).format(a=a, b=b, y=y, i=i) for i, (a, b, y) in enumerate(ROWS)]


CLOCK = [f"2026-03-29 02:{minute:02d}:00,{20 + minute % 7},{50 - minute % 5},{minute % 11}" for minute in range(40)]
CLOCKED = tuple((20.0 + i % 7, 50.0 - i % 5, float(i % 11)) for i in range(40))

FILES = [
    text("plain", table()),
    text("crlf", table(end="\r\n")),
    text("a byte order mark", "\ufeff" + table()),
    text("semicolons", table(";")),
    text("tabs", table("\t")),
    text("pipes", table("|")),
    text("aligned with spaces", table("   ", head="   a      b     y")),
    text("decimal commas, Excel in Europe", table(";", comma=True, end="\r\n")),
    text(
        "decimal commas in the inputs only",
        "a;b;y\n" + "\n".join(f"{a:.2f};{b:.2f};".replace(".", ",") + f"{y}" for a, b, y in ROWS) + "\n",
    ),
    text("decimal commas between tabs", table("\t", comma=True)),
    text("decimal commas, quoted, between commas", table(form='"{:.2f}"', comma=True)),
    text("sep= of Excel", "sep=;\r\n" + table(";", end="\r\n"), skipped={"sep=": 1, "header": 1}),
    text("sep= with quotes and commas", '"sep=,"\n' + table()),
    text("a mark of a comment before the names", table(head="# a,b,y")),
    text("a mark of a comment without a space", table(head="#a,b,y")),
    text("comments above", "# logger 4, firmware 1.2\n# shed, north\n" + table(), skipped={"comment": 2, "header": 1}),
    text("comments among the rows", table().replace("19.00", "# restarted, battery 3.1 V\n19.00"), skipped={"header": 1, "comment": 1}),
    text("a title line, HOBO", '"Plot Title: shed"\n' + "\n".join(['"#","Date Time","a","b","y"', *_rows(",", "{i}", "03/29/26 02:00:00 PM", "{a}", "{b}", "{y}")]) + "\n", skipped={"title": 1, "header": 1}),
    text("a title with commas", "Report, shed 4, 2026\n\n" + table(), skipped={"title": 1, "blank": 1, "header": 1}),
    text("a line of units", table(head="a,b,y\n°C,%,W"), skipped={"header": 1, "units": 1}),
    text(
        "Campbell TOA5",
        '"TOA5","shed","CR1000","1234","CR1000.Std.32","CPU:shed.CR1","5678","Table1"\n"TIMESTAMP","RECORD","a","b","y"\n'
        '"TS","RN","Deg C","%","W"\n"","","Avg","Smp","Avg"\n'
        + "\n".join(_rows(",", '"2026-03-29 02:{i:02d}:00"', "{i}", "{a}", "{b}", "{y}")) + "\n",
        skipped={"title": 1, "header": 1, "units": 2},
    ),
    text("cp1252", table(head="T °C,b,y"), encoding="cp1252", features="T °C,b"),
    text("utf-16 of PowerShell", table(end="\r\n"), encoding="utf-16"),
    FieldFile("utf-16 without a mark", table(head="T °C,b,y").encode("utf-16-le"), features="T °C,b"),
    FieldFile("utf-16, big end first", b"\xfe\xff" + table(";", comma=True).encode("utf-16-be")),
    text("quoted names with separators, semicolons between", table(";", head='"a, °C";"b, %, raw";y'), features='"a, °C","b, %, raw"'),
    text("quoted names with separators, commas between", table(head='"a, °C","b, %, raw",y'), features='"a, °C","b, %, raw"'),
    text("a space behind each comma, quoted", '"a", "b", "y"\n' + "\n".join(f'"{a}", "{b}", "{y}"' for a, b, y in ROWS) + "\n"),
    text("the names again after a restart", table() + table(), rows=ROWS + ROWS, skipped={"header": 2}),
    text(
        "the names again in another order",
        table() + "y,b,a\n" + "\n".join(f"{y},{b},{a}" for a, b, y in ROWS) + "\n",
        rows=ROWS + ROWS, skipped={"header": 2},
    ),
    text(
        "the names again with a column more",
        table() + "a,new,b,y\n" + "\n".join(f"{a},7,{b},{y}" for a, b, y in ROWS) + "\n",
        rows=ROWS + ROWS, skipped={"header": 2},
    ),
    text("a separator behind each row", table(tail=",")),
    text("separators behind names and rows, UCI", table(";", head="a;b;y;;", tail=";;", comma=True) + ";;;;\n" * 2, drops={"empty": 2}),
    text(
        "sentinels",
        "a,b,y\n20.5,-200,100\n-9999,48.5,101.5\n19,51,-200\n22.75,47.25,103.25\n",
        options=("--missing", "-200,-9999"),
        rows=((20.5, None, 100), (None, 48.5, 101.5), (22.75, 47.25, 103.25)),
        drops={"no y": 1},
    ),
    text("a word for missing", "a;b;y\nERR;50,0;100\n21,25;ERR;101,5\n", options=("--missing", "ERR"), rows=((None, 50, 100), (21.25, None, 101.5))),
    text("booleans of pandas", "a,b,y\nTrue,False,1\nFALSE,true,2\n", rows=((1, 0, 1), (0, 1, 2))),
    text("on and off", "a,b,y\nON,off,1\nopen,closed,2\nyes,NO,3\n", rows=((1, 0, 1), (1, 0, 2), (1, 0, 3))),
    text("classes on and off", "a,b,y\n1,2,ON\n3,4,off\n5,6,On\n", classes="OFF,ON", rows=((1, 2, 1), (3, 4, 0), (5, 6, 1))),
    text("classes true and false of pandas", "a,b,y\n1,2,True\n3,4,False\n", classes="false,true", rows=((1, 2, 1), (3, 4, 0))),
    text("classes 0.0 and 1.0", "a,b,y\n1,2,1.0\n3,4,0.0\n5,6,\n", classes="0,1", rows=((1, 2, 1), (3, 4, 0)), drops={"no y": 1}),
    text("classes open and closed, with decimal commas", "a;b;y\n1,5;2;OPEN\n3;4,5;closed\n", classes="closed,open", rows=((1.5, 2, 1), (3, 4.5, 0))),
    text(
        "classes in another case, and one that is none",
        "a,b,y\n1,2,Fault\n3,4,NORMAL\n5,6,maybe\n", classes="normal,fault",
        rows=((1, 2, 1), (3, 4, 0)), drops={"y is none of the classes": 1},
    ),
    text("a clock of text is no input", "time,a,b,y\n" + "\n".join(CLOCK) + "\n", features="", used=("a", "b"), rows=CLOCKED),
    text(
        "Unix time, with repeats and a restart",
        "ts,a,b,y\n" + "\n".join(f"{1_700_000_000 + (i % 30) // 2},{a},{b},{y}" for i, (a, b, y) in enumerate(CLOCKED)) + "\n",
        features="", used=("a", "b"), rows=CLOCKED,
    ),
    text(
        "an index, a constant and a name twice",
        ",a,fan,b,x,x,y\n" + "\n".join(f"{i},{a},0,{b},1,2,{y}" for i, (a, b, y) in enumerate(CLOCKED)) + "\n",
        features="", used=("a", "b"), rows=CLOCKED,
    ),
    text("a stray quotation mark", table().replace("21.25,", '"21.25,'), rows=(ROWS[0], *ROWS[2:]), drops={"wrong number of fields": 1}),
    text(
        "a stray quotation mark in a long file",
        "a,b,y\n" + "".join(('"' if i == 3 else "") + f"{i % 17}.5,1.25,2.5\n" for i in range(20_000)),
        rows=tuple((i % 17 + 0.5, 1.25, 2.5) for i in range(20_000) if i != 3),
        drops={"wrong number of fields": 1},
    ),
    text("line ends inside quotes", 'a,note,b,y\n20.5,"two\nlines, and ""more""",50,100\n21.25,fine,48.5,101.5\n', rows=ROWS[:2]),
    FieldFile("NULs after a power cut", table().replace("19.00", "\0" * 600 + "19.00").encode()),
    FieldFile("a line of NULs", table().replace("19.00", "\0" * 600 + "\n19.00").encode(), drops={"cannot be read": 1}),
    text("cut rows", table() + "20,5\n1,2,3,4,5\n", drops={"wrong number of fields": 2}),
    text("thousands with commas, quoted", 'a,b,y\n"1,234.50","12,345",1\n"999.50","1,345",2\n"2,000","12.5",3\n', rows=((1234.5, 12345, 1), (999.5, 1345, 2), (2000, 12.5, 3))),
    text("thousands with points", "a;b;y\n1.234,50;12;1\n999,50;13;2\n2.000;14;3\n", rows=((1234.5, 12, 1), (999.5, 13, 2), (2000, 14, 3))),
    text("thousands with spaces and apostrophes", "a;b;y\n1 234,5;1'234.5;1\n2\u202f000,5;2’000.5;2\n", rows=((1234.5, 1234.5, 1), (2000.5, 2000.5, 2))),
    text("exponents, signs and a minus of print", "a;b;y\n1.5e+03;+2,5E-1;1\n\u22123.5;1e3;2\n", rows=((1500, 0.25, 1), (-3.5, 1000, 2))),
    text(
        "infinite, nan and errors of Excel",
        "a,b,y\ninf,1,1\n-Infinity,1,2\nNaN,1,3\n1.#QNAN,1,4\n#DIV/0!,1,5\n#N/A,1,6\n<NA>,1,7\nnull,1,8\n",
        rows=tuple((None, 1.0, float(y)) for y in range(1, 9)),
    ),
    text("numbers of any length", f"a,b,y\n{'9' * 400},1,1\n{'0' * 5000}7,1,2\n0.{'3' * 3000},1,3\n", rows=((None, 1, 1), (7, 1, 2), (1 / 3, 1, 3)), values={"a": 1}),
    text("units behind the values", "a,b,y\n" + "\n".join(f"{a} °C,{b}%,{y} W" for a, b, y in ROWS) + "\n"),
    text("one bad value", table().replace("21.25", "n/k"), rows=(ROWS[0], (None, *ROWS[1][1:]), *ROWS[2:]), values={"a": 1}),
    text("a label that is no number", table().replace("101.50", "broken"), rows=(ROWS[0], *ROWS[2:]), drops={"y is no number": 1}),
    FieldFile("line ends of old Macs", table(end="\r").encode()),
    text("blank lines", table().replace("\n", "\n\n"), skipped={"header": 1, "blank": 5}),
    text("rows without a label", table(), label=None, options=("--model", "autoencoder"), rows=tuple(row[:2] for row in ROWS)),
    text("a separator that the owner names", table("~"), options=("--separator", "~")),
    text("a decimal mark that the owner names", 'a,b,y\n"1,234","2,345",1\n', options=("--decimal", ","), rows=((1.234, 2.345, 1),)),
    text("only names", "a,b,y\n", rows=()),
]  # fmt: skip
