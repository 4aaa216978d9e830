"""What every benchmark reports: the processor next to each ratio, in the table, the JSON and the
page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import harness, page
from tests.benchmarks.machine import this_machine

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU @ 2.6GHz\nflags\t\t: fpu sse2 {flags}\n"


@pytest.fixture
def rows() -> list[harness.Row]:
    return [
        harness.pairs_row("aligned", [95, 90], [100, 100], unit="x/s", reference="raw", goal=0.9),
        harness.pairs_row("seconds", [0.5], [1.0], unit="s", reference="others", better="lower"),
    ]


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("avx avx2", "avx2"),
        ("avx2 avx512f avx512_bf16", "avx512"),
        ("avx2 avx512f amx_bf16 amx_tile", "amx"),
        ("", "unknown"),
    ],
)
def test_the_class_of_instructions_is_the_widest_that_the_processor_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, isa: str
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(flags=flags) * 2)
    assert this_machine(cpuinfo).name == f"Some CPU @ 2.6GHz, {isa}"


def test_instructions_that_the_environment_turns_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(flags="avx2 avx512f"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    machine = this_machine(cpuinfo)
    assert machine.isa == "avx512"
    assert machine.name.endswith("limited by ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2")


def test_the_processor_is_next_to_every_ratio(
    rows: list[harness.Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = this_machine().name
    given = harness.Arguments(json=tmp_path / "reader.json", quick=True)
    harness.report("reader", rows, given, packages=["numpy"])
    assert name in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "reader.json").read_text())
    assert [row["machine"] for row in found["rows"]] == [name] * len(rows)
    assert {"processor", "isa", "isa_limits", "cores", "system"} <= found["machine"].keys()
    text = page.write_page(tmp_path).read_text()
    assert text.count(f"<td>{name}</td>") == len(rows)


def test_a_row_meets_its_goal_in_its_own_direction(rows: list[harness.Row]) -> None:
    assert [row.met for row in rows] == [True, None]
    slow = harness.pairs_row(
        "seconds", [3.0], [1.0], unit="s", reference="others", better="lower", goal=2.0
    )
    assert slow.met is False
