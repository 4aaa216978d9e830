"""Tables of outcomes as people have them: read in any form, and refused with every line that is
wrong.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from training.errors import OutcomesError
from training.risk.outcomes import read_outcomes

HEADER = "case,time,event"


def table(folder: Path, *lines: str, header: str = HEADER) -> str:
    path = folder / "outcomes.csv"
    path.write_text("\n".join([header, *lines]))
    return str(path)


def test_a_table_is_read_with_what_is_missing(tmp_path: Path) -> None:
    header = "Case,time,event,treatment,age,psa,t_stage,gleason_primary,gleason_secondary"
    header += ",positive_cores,total_cores"
    found = read_outcomes(
        table(
            tmp_path,
            "a,24,none,0,66,5.5,cT2a,3,4,3,12",
            "b,36,Distant metastasis,1,NA,,TX,,,,",
            "c,6,prostate_cancer_death,1,70,0.3,t1c,5,5,,",
            "d,0.5,OTHER_DEATH,0,,,T4,,,0,10",
            header=header,
        ),
        unit="months",
    )
    assert [one.years for one in found] == pytest.approx([2.0, 3.0, 0.5, 0.5 / 12])
    assert [one.cause for one in found] == [0, 1, 2, 3]
    assert [one.treated for one in found] == [False, True, True, False]
    assert found[0].covariates.t_stage == "T2a"
    assert found[1].covariates.missing == ("age", "psa", "t_stage", "gleason", "positive_cores")
    assert found[2].covariates.t_stage == "T1c"
    assert found[3].covariates.positive_share == 0


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"case": ["a", "b"], "time": [2, 3.5], "event": ["none", "other_death"], "psa": [None, 7.0]}
    )
    frame.to_parquet(tmp_path / "outcomes.parquet")
    frame.to_csv(tmp_path / "outcomes.csv", index=False)
    one, other = (read_outcomes(str(tmp_path / f"outcomes.{kind}")) for kind in ("parquet", "csv"))
    assert one == other


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,-1,none", r"has the time -1, which is not above 0 in line 2"),
        ("a,0,distant_metastasis", r"has the time 0, which is not above 0 in line 2"),
        ("a,,distant_metastasis", "has no time in line 2"),
        ("a,soon,none", "has the time 'soon' in line 2; give a number of years"),
        ("a,nan,none", "has no time in line 2"),
        ("a,inf,none", "has the time 'inf' in line 2"),
        ("a,96,none", r"has the time 96 years, 96 years in line 2; say whether time is in"),
        ("a,3,", "has no event in line 2; give one of none, distant_metastasis"),
        ("a,3,recurrence", "has the event 'recurrence' in line 2"),
        (",3,none", "names no case in line 2"),
        ("b,3,none\nb,4,none", "names the case of line 2 again in line 3"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(OutcomesError, match=message):
        read_outcomes(table(tmp_path, line))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("treatment", "yes", "has the treatment 'yes' in line 2; give 0 or 1"),
        ("age", "old", "has the age 'old' in line 2; give a number or nothing"),
        ("psa", "-3", r"has the psa -3\.0 in line 2; give ng/mL"),
        ("t_stage", "pT2a", "has the t_stage 'pT2a' in line 2"),
        ("gleason_primary", "4", "has the secondary None in line 2; give both Gleason patterns"),
        ("gleason_primary", "3.5", r"has the gleason_primary '3\.5' in line 2"),
        ("positive_cores", "3", "give positive_cores and total_cores, or neither"),
    ],
)
def test_a_variable_that_no_patient_can_have_is_named(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    with pytest.raises(OutcomesError, match=message):
        read_outcomes(table(tmp_path, f"a,3,none,{value}", header=f"{HEADER},{column}"))


def test_whole_numbers_and_yes_or_no_as_other_programs_write_them(tmp_path: Path) -> None:
    header = f"{HEADER},treatment,gleason_primary,gleason_secondary"
    found = read_outcomes(
        table(tmp_path, "a,3,none,1.0,4.0,3.0", "b,4,none,False,3,3", header=header)
    )
    assert [one.treated for one in found] == [True, False]
    assert found[0].covariates.primary == 4


def test_months_read_as_years_are_noticed(tmp_path: Path) -> None:
    lines = [f"case{k},{30 + k},none" for k in range(20)]
    with pytest.raises(OutcomesError, match="median follow-up of 40 years, read as years; say whe"):
        read_outcomes(table(tmp_path, *lines))
    assert len(read_outcomes(table(tmp_path, *lines), unit="months")) == 20


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutcomesError) as raised:
        read_outcomes(table(tmp_path, "a,-1,none", "b,3,cured", ",2,none"))
    text = str(raised.value)
    assert "has 3 mistakes" in text
    assert all(f"in line {line}" in text for line in (2, 3, 4))
    assert "'a'" not in text  # cases are not named: an id may be a patient's


def test_what_is_not_known_at_biopsy_is_refused(tmp_path: Path) -> None:
    """A PSA after treatment would carry the outcome into the model."""
    with pytest.raises(OutcomesError, match="the unknown column 'psa_at_2_years'"):
        read_outcomes(table(tmp_path, "a,3,none,0.1", header=f"{HEADER},psa_at_2_years"))


def test_a_treatment_of_some_patients_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutcomesError, match="has no treatment in line 3; give 0 or 1 on every"):
        read_outcomes(table(tmp_path, "a,3,none,1", "b,3,none,", header=f"{HEADER},treatment"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,event\n3,none", "no column 'case'"),
        ("case,event\na,none", "has no column 'time'; add it"),
        ("case,time,event\n", "lists no case"),
        ('case,time,event\n"a,3,none', "can't be read as a table"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "outcomes.csv").write_text(text)
    with pytest.raises(OutcomesError, match=message):
        read_outcomes(str(tmp_path / "outcomes.csv"))
    with pytest.raises(OutcomesError, match=r"gone\.csv is not there; check its path"):
        read_outcomes(str(tmp_path / "gone.csv"))
