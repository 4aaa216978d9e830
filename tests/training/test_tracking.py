"""Runs are recorded in a real MLflow if one is named, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.training.test_model_set import fitted
from training.errors import RunError
from training.model_set import ModelSet
from training.tracking import EXPERIMENT, MAX_BATCH, VARIABLE, track

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``:DeprecationWarning")
"""MLflow's own use of SQLAlchemy."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    return fitted(tmp_path_factory.mktemp("set"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv(VARIABLE, uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    return uri


def runs(store: str) -> list[Run]:
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_a_run_has_the_settings_metrics_and_hashes_of_its_model(
    store: str, models: ModelSet
) -> None:
    card = {
        **models.slide_model.card,
        "config": {"folds": 5, "attention": {"hidden": 64}},
        "metrics": {"patch": {"balanced_accuracy": 0.75, "confusion": [[1, 0], [0, 1]]}},
    }
    track(card)
    [run] = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hash"] == models.slide_model.hash
    assert run.data.tags["encoder_hash"] == models.encoder.hash
    assert run.data.params["config.attention.hidden"] == "64"
    assert run.data.params["spec.mpp"] == str(models.spec.mpp)
    assert run.data.metrics == {"patch.balanced_accuracy": 0.75}
    known = {*run.data.tags} - {"mlflow.runName"}
    assert known <= {"kind", "hash", "encoder_hash", "slide_model_hash"}, "no user, path or command"


def test_many_settings_are_all_recorded(store: str, models: ModelSet) -> None:
    many = {f"option_{k}": k for k in range(2 * MAX_BATCH + 1)}
    track({**models.risk_model.card, "config": many})
    [run] = runs(store)
    assert sum(name.startswith("config.") for name in run.data.params) == len(many)


def test_nothing_is_recorded_where_no_store_is_named(
    store: str, models: ModelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    track(models.risk_model.card)
    assert not Path(store.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize("uri", ["sqlite:///{folder}/file/runs.db", "http://127.0.0.1:1"])
def test_a_store_that_is_not_there_is_one_sentence(
    uri: str, models: ModelSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, uri.format(folder=tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match="the model is written, but MLflow did not take its run"):
        track(models.risk_model.card)


def test_mlflow_that_is_not_installed_is_one_sentence(
    store: str, models: ModelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RunError, match=r"install acinus\[tracking\]"):
        track(models.risk_model.card)
    assert not Path(store.removeprefix("sqlite:///")).exists()
