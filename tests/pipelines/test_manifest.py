"""Manifests: mistakes reported with their lines, usual tables read, no patient in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import storage
from pipelines.completion import slide_version
from pipelines.discovery import discover
from pipelines.manifest import Manifest, ManifestRow, read_manifest
from pipelines.slides.errors import ManifestError
from pipelines.splits import SplitShares
from tests.support.formats import write_slide

SHARES = SplitShares.parse("train=0.7,validation=0.15,test=0.15")


def _read(folder: Path, text: str | bytes, **options: SplitShares) -> Manifest:
    (folder / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(str(folder / "m.csv"), **options)


def _slides(location: str) -> list[str]:
    return list(discover(location).slides)


def _names(uris: Sequence[str]) -> list[str]:
    return [uri.rpartition("slides/")[2] for uri in uris]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,split\na.svs,train\na.svs,test\n", "a.svs is in lines 2 and 3"),
        (
            "slide,case,split\na.svs,p1,train\nb.svs,p1,test\n",
            "case p1, which is in split 'train' in line 2 and in 'test' in line 3",
        ),
        (
            "slide,case,split\na.svs,P1,train\nb.svs,p1,test\n",
            "case p1, which is in split 'train' in line 2 and in 'test' in line 3",
        ),
        ("slide\na.svs\n./a.svs\n", "a.svs is in lines 2 and 3"),
        ("slide\na.svs\nb/.././a.svs\n", "a.svs is in lines 2 and 3"),
        ("slide,mpp\na.svs,0.25\nb.svs,forty\n", "b.svs has the mpp 'forty' in line 3"),
        ("slide;mpp\na.svs;1,2,5\n", "the mpp '1,2,5' in line 2; give a number of micrometres"),
        ("slide,mpp\na.svs,1_0\n", "the mpp '1_0' in line 2; give a number of micrometres"),
        ("slide,mpp\na.svs,250\n", "the mpp 250 in line 2, outside 0.05 to"),
        ("slide,mpp\na.svs,inf\n", "the mpp inf in line 2"),
        ("slide,mpp\na.svs,-1\n", "the mpp -1 in line 2"),
        ("slide,mpp\n,0.5\n", "names no slide in line 2"),
        ("slide,lable\na.svs,3+3\n", "unknown column 'lable' in line 1"),
        ("path\na.svs\n", "the unknown column 'path' and no column 'slide' in line 1"),
        ("slide,mpp,mpp\na.svs,1,2\n", "repeated column 'mpp'"),
        ("case\np1\n", "no column 'slide'"),
        ("", "no column 'slide'"),
        ("slide\n", "lists no slide"),
        ("slide\n\n \n", "lists no slide"),
        ("slide,case\na.svs,p1\nb.svs\n", "1 cells in line 3 for 2 columns"),
        ("slide,case\na.svs,p1,train\n", "3 cells in line 2 for 2 columns"),
        ('slide,case\na.svs,p1\n"b.svs,p2\n', "from line 3 on"),
        ('slide,case\n"a\n.svs",p1\n', "m.csv has a line break within a cell in line 2"),
        (
            'slide,label\na.svs,"3+3\n"\nb.svs,"3\n4"\n\nc.svs,x\nc.svs,y\n',
            "c.svs is in lines 7 and 8",
        ),
        ("slide\nnothing-*.svs\n", "matches no slide in line 2"),
        ("slide,annotation\na*.svs,a.geojson\n", "stands for several slides in line 2"),
        ("slide\na.svs\n".encode("utf-16-le"), "is not UTF-8"),
        ("slide\nä.svs\n".encode("cp1252"), "is not UTF-8 text; save it as CSV UTF-8"),
        ("slide,\na.svs,p1\n", "a cell in line 2 whose column has no name"),
        ("lable,slyde,mpp,mpp\nx,y,1,2\n", "the unknown column 'lable', 'slyde' and the repeated"),
        ("slide\nP1\\a.svs\n", "is a path of Windows in line 2; write it with /"),
        ("slide\ns3:/bucket/P1.svs\n", "P1.svs is a URI that lacks a slash in line 2"),
        ("slide\na.svs\ns3:///P1.svs\n", "P1.svs names no bucket in line 3"),
        ("slide,annotation\na.svs,file:/a.geojson\n", "a.geojson is a URI that lacks a slash in"),
        ("slide,annotation_origin\na.svs,crop\n", "annotation_origin 'crop' in line 2; use bounds"),
        ("slide,case\nNA,p1\n", "names no slide in line 2"),
    ],
)
def test_mistakes_are_reported_with_their_lines(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ManifestError) as raised:
        _read(tmp_path, text)
    assert message in str(raised.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    bad = "".join(f"s{k}.svs,p{k},train,x\n" for k in range(20))
    with pytest.raises(ManifestError, match="has 23 mistakes") as raised:
        _read(
            tmp_path,
            f"slide,case,split,mpp\na.svs,p,train,1\n{bad},q,train,1\n"
            "a.svs,p,train,1\nb.svs,p,test,1\n",
        )
    text = str(raised.value)
    assert [f"in line {line}" in text for line in (2, 3, 12, 13)] == [False, True, True, False]
    assert "and 13 more" in text
    with pytest.raises(ManifestError, match="has 3 mistakes") as raised:
        _read(tmp_path, "slide,case,split,mpp\na.svs,p,train,x\na.svs,p,train,1\nb.svs,p,test,1\n")
    assert "line 2" in str(raised.value)
    assert "line 4" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "slide,mpp,case,label\n a.svs ,0.25,p1,3+4\n\nsub/b.svs,,p2,\n",
        "\ufeffslide,mpp,case,label\r\na.svs,0.25,p1,3+4\r\n\r\nsub/b.svs,,p2,\r\n",
        "slide;mpp;case;label\na.svs;0.25;p1;3+4\n\nsub/b.svs;;p2;\n",
        "slide\tmpp\tcase\tlabel\na.svs\t0.25\tp1\t3+4\n\nsub/b.svs\t\tp2\t\n",
        '"slide","mpp","case","label"\r"a.svs","0.25","p1","3+4"\r\r"sub/b.svs","","p2",""',
    ],
    ids=["plain", "mark-crlf", "semicolons", "tabs", "quoted-cr"],
)
def test_usual_ways_of_writing_a_table(tmp_path: Path, text: str) -> None:
    root = f"file://{tmp_path}"
    assert list(_read(tmp_path, text)) == [
        ManifestRow(line=2, uri=f"{root}/a.svs", mpp=0.25, case="p1", label="3+4"),
        ManifestRow(line=4, uri=f"{root}/sub/b.svs", case="p2"),
    ]


def test_a_quoted_name_keeps_its_separator(tmp_path: Path) -> None:
    rows = _read(tmp_path, 'slide,label\n"a, left ""core"".svs","3+4, focal"\nb.svs,\n')
    (row,) = _read(tmp_path, "slide,mpp\ncore #3?.svs,\n")
    assert row.uri == f"file://{tmp_path}/core%20%233%3F.svs"
    with pytest.raises(ManifestError, match=r"slide core #3\?\.svs has the mpp"):
        _read(tmp_path, "slide,mpp\ncore #3?.svs,x\n")
    assert (rows[0].uri, rows[0].label, rows[1].line) == (
        f"file://{tmp_path}/a%2C%20left%20%22core%22.svs",
        "3+4, focal",
        3,
    )


def test_paths_next_to_and_above_the_manifest(tmp_path: Path, s3_bucket: str) -> None:
    """A DICOM series is a folder, and is looked up by its path as the files are."""
    series = write_slide("dicom-jpeg", tmp_path)
    text = (
        f"slide,annotation\n../{series.name}/,./a.geojson\n./b.svs,\n"
        f"{tmp_path}/c/../d.svs,\nfile://{tmp_path}/./e.svs,\n"
    )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.geojson").write_text("[]")
    rows = _read(tmp_path / "lists", text)
    root = f"file://{tmp_path}"
    assert [row.uri for row in rows] == [
        f"{root}/{series.name}",
        f"{root}/lists/b.svs",
        f"{root}/d.svs",
        f"{root}/e.svs",
    ]
    assert rows[0].annotation == f"{root}/lists/a.geojson"
    assert slide_version(rows[0].uri) == slide_version(storage.as_uri(series))
    storage.write_bytes(
        f"{s3_bucket}/lists/m.csv", b"slide\n../../../a.svs\n./s/\ns3://other/prefix/\n"
    )
    rows = read_manifest(f"{s3_bucket}/lists/m.csv")
    assert [row.uri for row in rows] == [
        f"{s3_bucket}/a.svs",
        f"{s3_bucket}/lists/s",
        "s3://other/prefix/",
    ]


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    table = pa.table(
        {
            "slide": ["a.svs", "b.svs"],
            "mpp": [0.25, float("nan")],
            "case": [7.0, 8.0],
            "label": ["3+3", None],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    rows = read_manifest(str(tmp_path / "m.parquet"))
    assert [(row.line, row.mpp, row.case, row.label) for row in rows] == [
        (2, 0.25, "7", "3+3"),
        (3, None, "8", ""),
    ]
    pq.write_table(pa.table({"slide": ["a.svs", None]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="no slide in line 3"):
        read_manifest(str(tmp_path / "m.parquet"))
    (tmp_path / "m.parquet").write_bytes(b"slide\na.svs\n")
    with pytest.raises(ManifestError, match="can't be read as Parquet"):
        read_manifest(str(tmp_path / "m.parquet"))


def _tree(root: str) -> None:
    for name in (
        "a.svs",
        "B.SVS",
        "deep/er/c.tiff",
        "deep/d [2].ndpi",
        "notes.txt",
        "a.geojson",
        "e.svs.tmp",
    ):
        storage.write_bytes(storage.join(root, *name.split("/")), b"x")
    for name in ("1.dcm", "2.DCM", "index.xml"):
        storage.write_bytes(storage.join(root, "series", name), b"x")


def _check_places(root: str) -> None:
    _tree(root)
    everything = ["B.SVS", "a.svs", "deep/d%20%5B2%5D.ndpi", "deep/er/c.tiff", "series"]
    assert _names(_slides(root)) == everything
    assert _names(_slides(f"{root}/")) == everything
    assert _names(_slides(f"{root}/*.svs")) == ["B.SVS", "a.svs"]
    assert _names(_slides(f"{root}/**/*.tiff")) == ["deep/er/c.tiff"]
    assert _names(_slides(f"{root}/**/*.svs")) == ["B.SVS", "a.svs"]
    assert _names(_slides(f"{root}/deep/*")) == ["deep/d%20%5B2%5D.ndpi"]
    assert _names(_slides(f"{root}/deep/d [2]*")) == ["deep/d%20%5B2%5D.ndpi"]
    assert _names(_slides(f"{root}/ser*")) == _names(_slides(f"{root}/*/*.dcm")) == ["series"]
    assert _names(_slides(f"{root}/a.svs")) == ["a.svs"]
    assert _names(_slides(f"{root.rpartition('/')[0]}/*/a.svs")) == ["a.svs"]
    assert _slides(f"{root}/nowhere") == _slides(f"{root}/*.txt") == []
    rows = read_manifest(f"{root}/**")
    assert [row.case for row in rows] == [
        "B.SVS",
        "a.svs",
        "deep/d [2].ndpi",
        "deep/er/c.tiff",
        "series",
    ]
    assert {row.line for row in rows} == {0}
    with pytest.raises(ManifestError, match=r"has no slide|is not there"):
        read_manifest(f"{root}/nowhere")


def test_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_places(str(tmp_path / "slides"))
    monkeypatch.chdir(tmp_path)
    assert _names(_slides("slides/*.svs")) == ["B.SVS", "a.svs"]


def test_prefixes_and_patterns_on_s3(s3_bucket: str) -> None:
    _check_places(f"{s3_bucket}/slides")
    storage.write_bytes(f"{s3_bucket}/slides-of-others/z.svs", b"x")
    assert "z.svs" not in "".join(_slides(f"{s3_bucket}/slides"))
    storage.write_bytes(f"{s3_bucket}/m.csv", b"slide,label\nslides/*.svs,3+3\n")
    assert [row.uri for row in read_manifest(f"{s3_bucket}/m.csv")] == [
        f"{s3_bucket}/slides/B.SVS",
        f"{s3_bucket}/slides/a.svs",
    ]


def test_a_pattern_in_a_row_stands_for_its_slides(tmp_path: Path) -> None:
    _tree(str(tmp_path / "slides"))
    rows = _read(
        tmp_path, "slide,case,split,label\nslides/*.svs,p1,train,3+3\nslides/deep/**,,test,benign\n"
    )
    assert [(row.line, row.case, row.split, row.label) for row in rows] == [
        *([(2, "p1", "train", "3+3")] * 2),
        (3, "slides/deep/d [2].ndpi", "test", "benign"),
        (3, "slides/deep/er/c.tiff", "test", "benign"),
    ]
    with pytest.raises(ManifestError, match=r"a\.svs is in lines 2 and 3"):
        _read(tmp_path, "slide\nslides/*.svs\nslides/a.svs\n")


@pytest.mark.parametrize(
    "nothing",
    [
        "NA",
        "nan",
        "NaN",
        "N/A",
        "#N/A",
        "NULL",
        "None",
        "<NA>",
        "",
        "  ",
        "none",
        "Null",
        "NaT",
        "-nan",
        "nil",
        ".",
        "-",
        "\N{EN DASH}",
        "?",
        "#N/A N/A",
        "#NV",
        "\\N",
        "\N{ZERO WIDTH SPACE}",
        "\N{ZERO WIDTH NO-BREAK SPACE} \N{NO-BREAK SPACE}",
        "NA\N{ZERO WIDTH SPACE}",
    ],
    ids=ascii,
)
def test_what_programs_write_for_nothing_is_nothing(tmp_path: Path, nothing: str) -> None:
    header = "slide,mpp,case,split,label,annotation"
    cells = ",".join([nothing] * 5)
    rows = _read(tmp_path, f"{header}\na.svs,{cells}\nb.svs,{cells}\n")
    assert list(rows) == [
        ManifestRow(line=line, uri=f"file://{tmp_path}/{name}", case=name)
        for line, name in ((2, "a.svs"), (3, "b.svs"))
    ]
    with pytest.raises(ManifestError, match="no case in line 2"):
        _read(tmp_path, f"slide,case\na.svs,{nothing}\n", shares=SHARES)


@pytest.mark.parametrize(
    "error",
    [
        "#REF!",
        "#DIV/0!",
        "#VALUE!",
        "#NAME?",
        "#NUM!",
        "#BEZUG!",
        "#¡REF!",
        "#####",
        "Err:502",
    ],
)
def test_a_formula_that_failed_is_a_mistake_of_its_line(tmp_path: Path, error: str) -> None:
    """All slides would be one case."""
    with pytest.raises(ManifestError, match="has 2 mistakes") as raised:
        _read(tmp_path, f"slide,case\na.svs,{error}\nb.svs,p1\nc.svs,{error}\n")
    for line in (2, 4):
        assert f"has {error} of a spreadsheet in column 'case' in line {line}" in str(raised.value)


def test_slides_of_one_name_in_two_folders_are_two_cases(tmp_path: Path) -> None:
    rows = _read(tmp_path, "slide,split\nP1/HE.svs,train\nP2/HE.svs,test\n")
    assert [row.case for row in rows] == ["P1/HE.svs", "P2/HE.svs"]
    for name in ("P1", "P2"):
        storage.write_bytes(storage.join(str(tmp_path), name, "HE.svs"), b"x")
    assert [row.case for row in read_manifest(str(tmp_path / "P*" / "*"))] == [
        "P1/HE.svs",
        "P2/HE.svs",
    ]


def test_slides_outside_the_folder_are_cases_that_name_no_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = _read(tmp_path / "lists", "slide\n../Jane/HE.svs\n../Joe/HE.svs\ns3://b/Jim/HE.svs\n")
    cases = [row.case for row in rows]
    assert len(set(cases)) == 3
    assert all(case.startswith("HE.svs-") for case in cases)
    assert not any(name in "".join(cases) for name in ("Jane", "Joe", "Jim"))


@pytest.mark.parametrize(
    "spellings",
    [
        ("P1", "p1"),
        ("Fä", "Fa\u0308"),
        ("P1", "P1\N{ZERO WIDTH SPACE}"),
        ("P1", "P\N{ZERO WIDTH NO-BREAK SPACE}1"),
        ("P 1", "P\N{NO-BREAK SPACE}1"),
    ],
    ids=ascii,
)
def test_spellings_of_a_case_are_one_case(tmp_path: Path, spellings: tuple[str, str]) -> None:
    """Cross-validation parts cases letter by letter."""
    first, second = spellings
    rows = _read(tmp_path, f"slide,case\na.svs,{first}\nb.svs,{second}\n")
    assert {row.case for row in rows} == {first}


def test_a_home_folder_in_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.geojson").write_text("[]")
    rows = _read(tmp_path, "slide,annotation\n~/a.svs,~/a.geojson\n~b.svs,\n")
    assert [row.uri for row in rows] == [
        f"file://{tmp_path}/home/a.svs",
        f"file://{tmp_path}/~b.svs",
    ]
    assert rows[0].annotation == f"file://{tmp_path}/home/a.geojson"


@pytest.mark.parametrize(
    "text",
    [
        "slide\tmpp\na.svs\t0,25\n".encode("utf-16"),
        "sep=;\r\nslide;mpp\r\na.svs;0,25\r\n",
        "Slide;MPP;;\na.svs;0.25;;\n",
        'slide,mpp\na.svs,"0,25"\n',
        "slide,mpp\na.svs,0.25,,\n",
        "slide,annotation_origin,mpp\na.svs,,0.25\n",
    ],
    ids=[
        "UTF-16",
        "sep=",
        "capitals and empty columns",
        "decimal comma",
        "empty cells behind",
        "origin",
    ],
)
def test_tables_of_spreadsheets(tmp_path: Path, text: str | bytes) -> None:
    (row,) = _read(tmp_path, text)
    assert (row.uri, row.mpp, row.annotation_origin) == (f"file://{tmp_path}/a.svs", 0.25, "bounds")


def test_mistakes_of_all_kinds_are_reported_together(tmp_path: Path) -> None:
    text = (
        "slide,case,mpp,annotation_origin\n"
        "a.svs,p1,x,here\n"  # two in one line
        "b.svs,p1\n"  # too few cells
        ",p2,0.5,\n"  # no slide
        "a.svs,p1,1,\n"  # twice
        'c.svs,"p3\n'  # ends the table
    )
    with pytest.raises(ManifestError, match="has 6 mistakes") as raised:
        _read(tmp_path, text)
    for said in (
        "the mpp 'x' in line 2",
        "annotation_origin 'here' in line 2",
        "2 cells in line 3",
        "names no slide in line 4",
        "a.svs is in lines 2 and 5",
        "from line 6 on",
    ):
        assert said in str(raised.value)


def test_a_spreadsheet_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "m.xlsx").write_bytes(b"PK")
    with pytest.raises(ManifestError, match=r"m\.xlsx is a spreadsheet; save it as CSV UTF-8"):
        read_manifest(str(tmp_path / "m.xlsx"))


def test_splits_follow_the_case(tmp_path: Path) -> None:
    def table(cases: int) -> str:
        return "slide,case\n" + "".join(
            f"s{k}-{n}.svs,p{k}\n" for k in range(cases) for n in range(2)
        )

    few, many = (
        {row.uri: row for row in _read(tmp_path, table(n), shares=SHARES)} for n in (100, 2000)
    )
    assert all(
        many[uri].split == row.split for uri, row in few.items()
    )  # more slides move no old one
    splits = [row.split for row in many.values()]
    for name, share in SHARES.shares:
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=0.04)
    assert len({(row.case, row.split) for row in many.values()}) == 2000  # a case is in one split
    assert all(SHARES.of(f"P{k}") == SHARES.of(f"p{k}") for k in range(100))
    other = _read(tmp_path, table(100), shares=SplitShares(shares=SHARES.shares, seed=1))
    assert [row.split for row in other] != [row.split for row in few.values()]


def test_splits_are_only_assigned_if_every_slide_has_a_case(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="column 'split' already"):
        _read(tmp_path, "slide,case,split\na.svs,p1,train\n", shares=SHARES)
    with pytest.raises(ManifestError, match="no case in line 3"):
        _read(tmp_path, "slide,case\na.svs,p1\nb.svs,\n", shares=SHARES)
    _tree(str(tmp_path / "slides"))
    with pytest.raises(ManifestError, match="names no case"):
        read_manifest(str(tmp_path / "slides"), shares=SHARES)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.text(), st.integers(0, 5))
def test_every_case_has_a_split(weights: list[float], case: str, seed: int) -> None:
    shares = SplitShares(
        shares=tuple((f"s{k}", weight / sum(weights)) for k, weight in enumerate(weights)),
        seed=seed,
    )
    assert shares.of(case) in {name for name, _ in shares.shares}
    assert shares.of(case) == shares.of(case)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.7,test=0.2", "0.9 together"),
        ("train", "'train' is not NAME=SHARE"),
        ("train=x", "'train=x' is not NAME=SHARE"),
        ("train=0.5,train=0.5", "name of its own"),
        ("=1", "name of its own"),
        ("train=1.5,test=-0.5", "share above 0"),
        ("train=1,test=nan", "above 0|together"),
    ],
)
def test_shares_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitShares.parse(text)
