"""The registry: versions never change, one is in production, and only one that is reproducible."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from tests.support.s3 import s3_bucket
from tests.training.test_model_set import fitted, written
from training.encoder.encoder import load_encoder, save_encoder
from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.errors import (
    BrokenModel,
    InsufficientData,
    ModelNotFound,
    NotReproducible,
    PromotionRefused,
    RegistryDamaged,
    VersionNotFound,
)
from training.model_set import ModelSet
from training.registry.page import write_page
from training.registry.registry import MIN_ICC, Registry
from training.registry.reproducibility import CHANGES, agreement, measure
from training.registry.source import open_source

GOOD = {"lowest_icc": 0.97, "lowest_of": "risk"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    return fitted(tmp_path_factory.mktemp("set"))


@pytest.fixture
def first(models: ModelSet, tmp_path: Path) -> str:
    return written(models, tmp_path / "first")


@pytest.fixture
def second(models: ModelSet, tmp_path: Path) -> str:
    """The same models with another remark in a card: another version."""
    return written(models, tmp_path / "second", risk={"remarks": ["another"]})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def test_a_version_is_named_by_its_content_and_added_once(
    registry: Registry, first: str, second: str
) -> None:
    version = registry.add(first, by="ada")
    assert registry.add(first, by="ada") == version
    assert registry.add(second, by="ada") != version
    assert [entry.stage for entry in registry.entries()] == ["candidate", "candidate"]
    assert registry.find(version[:8]) == version
    assert registry.load(version).risk_model.card["hash"]
    facts = registry.entry(version).version.facts
    assert facts["parents"]["risk_model"] == [
        facts["models"]["encoder"]["hash"],
        facts["models"]["slide_model"]["hash"],
    ]


def test_only_a_reproducible_version_goes_into_production(registry: Registry, first: str) -> None:
    version = registry.add(first, by="ada")
    with pytest.raises(NotReproducible, match="no record of its reproducibility"):
        registry.promote(version, by="ada")
    registry.reproduce(version, {"lowest_icc": MIN_ICC - 0.01, "lowest_of": "risk"}, by="ada")
    with pytest.raises(NotReproducible, match=r"correlation of 0\.940 \(risk\) where 0\.95"):
        registry.promote(version, by="ada")
    registry.reproduce(version, {"lowest_icc": None, "lowest_of": ""}, by="ada")
    with pytest.raises(NotReproducible, match="the same of every slide"):
        registry.promote(version, by="ada")
    with pytest.raises(VersionNotFound, match="no version in production"):
        registry.production()
    registry.reproduce(version, GOOD, by="ada")
    registry.promote(version, by="grace")
    assert registry.production() == version
    assert registry.entry(version).changes[-1].by == "grace"


def test_rollback_brings_back_what_was_in_production_before(
    registry: Registry, first: str, second: str
) -> None:
    versions = [registry.add(each, by="ada") for each in (first, second)]
    for version in versions:
        registry.reproduce(version, GOOD, by="ada")
        registry.promote(version, by="ada")
    assert [entry.stage for entry in registry.entries()] == ["retired", "production"]
    with pytest.raises(PromotionRefused, match="is in production; promote another first"):
        registry.retire(versions[1], by="ada")
    registry.rollback(by="ada")
    assert registry.production() == versions[0]
    with pytest.raises(PromotionRefused, match="no other version"):
        registry.rollback(by="ada")
    registry.retire(versions[1], by="ada")
    with pytest.raises(PromotionRefused, match="was retired by ada"):
        registry.promote(versions[1], by="ada")


def test_every_file_is_compared_with_its_hash(registry: Registry, first: str) -> None:
    version = registry.add(first, by="ada")
    weights = Path(storage.local_path(registry.folder(version)) or "") / "risk_model"
    content = bytearray((weights / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (weights / "model.safetensors").write_bytes(content)
    with pytest.raises(BrokenModel, match=r"risk_model/model\.safetensors of version"):
        registry.load(version)
    (weights / "model.safetensors").unlink()
    with pytest.raises(BrokenModel, match="is missing; restore it"):
        registry.load(version)


def test_pickles_and_other_files_are_not_copied(registry: Registry, first: str) -> None:
    (Path(first) / "encoder" / "weights.pkl").write_bytes(b"code")
    version = registry.add(first, by="ada")
    assert not any(path.endswith(".pkl") for path in registry.entry(version).version.files)
    folder = Path(storage.local_path(registry.folder(version)) or "")
    assert list(folder.rglob("*.pkl")) == []


def test_a_set_that_does_not_fit_together_leaves_no_version(
    registry: Registry, first: str, tmp_path: Path
) -> None:
    shutil.rmtree(Path(first) / "risk_model")
    with pytest.raises(ModelNotFound):
        registry.add(first, by="ada")
    assert registry.entries() == []
    assert not (tmp_path / "registry").exists()


def test_a_version_has_the_encoder_that_its_models_were_fitted_with_by_name(
    registry: Registry, tmp_path: Path
) -> None:
    models = tmp_path / "named"
    fitted(models, EFFICIENTNET_LITE0)
    with pytest.raises(ModelNotFound, match="encoder"):
        registry.add(str(models), by="ada")
    version = registry.add(str(models), by="ada", encoder=EFFICIENTNET_LITE0)
    by_name = load_encoder(EFFICIENTNET_LITE0)
    assert registry.load(version).encoder.hash == by_name.hash
    assert registry.entry(version).version.facts["licence"]["encoder"] == "Apache-2.0"
    save_encoder(str(models / "encoder"), load_encoder(EFFICIENTNET_LITE0, precision="f32"))
    assert registry.add(str(models), by="ada") == version, "the same content has the same name"


DYING = """
import os, signal, sys
from pipelines import storage
from training.registry.registry import Registry

write, left = storage.write_once, int(sys.argv[3])

def dying(uri, data):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return write(uri, data)

storage.write_once = dying
Registry(sys.argv[1]).add(sys.argv[2], by="ada")
"""


@pytest.mark.parametrize(("store", "writes"), [("disk", 3), ("s3", 7)])
def test_a_killed_add_leaves_no_version_and_a_repeat_succeeds(
    store: str, writes: int, first: str, tmp_path: Path
) -> None:
    """Killed amid the files, and when everything but the log is written."""
    with s3_bucket() as bucket:
        uri = str(tmp_path / "registry") if store == "disk" else f"{bucket}/registry"
        arguments = [sys.executable, "-c", DYING, uri, first, str(writes)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        registry = Registry(uri)
        assert len(storage.list_uris(registry.uri)) == writes
        assert registry.entries() == []
        version = registry.add(first, by="ada")
        assert [entry.version.hash for entry in registry.entries()] == [version]
        assert len(registry.entry(version).version.files) == 6
        assert registry.load(version).encoder.hash


def test_the_page_of_a_version_has_its_facts_and_its_own_pictures(
    registry: Registry, first: str
) -> None:
    picture = b"\x89PNG of a <curve>"
    (Path(first) / "risk_model" / "calibration.png").write_bytes(picture)
    version = registry.add(first, by="ada")
    folder = registry.folder(version)
    page = write_page(registry.entry(version), folder)
    assert base64.b64encode(picture).decode() in page
    assert "Not measured: the version can't go into production" in page
    assert "risk model: calibration" in page
    local = Path(storage.local_path(folder) or "")
    (local / "risk_model" / "calibration.png").write_bytes(b"another")
    with pytest.raises(BrokenModel, match=r"risk_model/calibration\.png of version"):
        write_page(registry.entry(version), folder)


def test_changes_at_the_same_moment_are_all_kept_in_one_order(
    registry: Registry, first: str
) -> None:
    version = registry.add(first, by="ada")
    writers = [Registry(registry.uri) for _ in range(6)]
    threads = [
        threading.Thread(target=one.reproduce, args=(version, GOOD), kwargs={"by": f"{k}"})
        for k, one in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = registry.history().changes
    assert [change.number for change in changes] == list(range(1, 8))
    assert {change.by for change in changes[1:]} == {"0", "1", "2", "3", "4", "5"}


def test_a_registry_is_read_by_several_threads(registry: Registry, first: str) -> None:
    version = registry.add(first, by="ada")
    for _ in range(20):
        registry.reproduce(version, GOOD, by="ada")
    fresh, counts = Registry(registry.uri), []
    threads = [
        threading.Thread(target=lambda: counts.append(len(fresh.history().changes)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [21] * 8
    assert len(fresh.history().changes) == 21


def test_models_are_taken_from_production_or_from_a_folder(registry: Registry, first: str) -> None:
    version = registry.add(first, by="ada")
    served = open_source(registry.uri)
    with pytest.raises(VersionNotFound, match="no version in production; promote one"):
        served.production()
    registry.reproduce(version, GOOD, by="ada")
    registry.promote(version, by="ada")
    assert served.production() == version
    folder = open_source(first)
    assert folder.production() == version, "a folder is named as a registry would name it"
    assert folder.load(version).risk_model.hash == served.load(version).risk_model.hash


def test_a_folder_that_was_exchanged_is_another_version(first: str, second: str) -> None:
    folder = open_source(first)
    version = folder.production()
    shutil.copytree(second, first, dirs_exist_ok=True)
    with pytest.raises(VersionNotFound, match="keep model sets that are exchanged in a registry"):
        folder.load(version)


def test_a_log_with_a_gap_is_refused(registry: Registry, first: str, tmp_path: Path) -> None:
    version = registry.add(first, by="ada")
    registry.reproduce(version, GOOD, by="ada")
    (tmp_path / "registry" / "log" / "00000001.json").unlink()
    with pytest.raises(RegistryDamaged, match="without a gap"):
        Registry(registry.uri).history()


def test_an_entry_that_is_not_one_is_refused(
    registry: Registry, first: str, tmp_path: Path
) -> None:
    registry.add(first, by="ada")
    entry = tmp_path / "registry" / "log" / "00000001.json"
    entry.write_text(json.dumps({"number": 1}))
    with pytest.raises(RegistryDamaged, match="is not an entry of a log"):
        Registry(registry.uri).history()


def test_versions_that_begin_alike_or_do_not_exist_are_named(
    registry: Registry, first: str
) -> None:
    registry.add(first, by="ada")
    with pytest.raises(VersionNotFound, match="no version 'zz'"):
        registry.find("zz")


SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
"""Six targets, four judges: Shrout and Fleiss 1979, table 2; their ICC(2,1) is 0.29."""


def test_the_intraclass_correlation_is_that_of_the_published_example() -> None:
    assert agreement(SHROUT_FLEISS) == pytest.approx(0.29, abs=0.005)
    assert agreement(np.repeat(SHROUT_FLEISS[:, :1], 4, axis=1)) == pytest.approx(1.0)
    assert agreement(np.full((4, 3), 0.2)) is None


def test_changes_of_stain_and_scale_are_small_and_keep_the_shape() -> None:
    patches = np.random.default_rng(0).integers(60, 240, (3, 64, 64, 3), dtype=np.uint8)
    for change in CHANGES.values():
        changed = change(patches)
        assert changed.shape == patches.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, patches)
        assert abs(changed.mean() - patches.mean()) < 6


def test_too_few_slides_measure_nothing(models: ModelSet) -> None:
    with pytest.raises(InsufficientData, match="2 slides say nothing"):
        measure(models, ["a.svs", "b.svs"])
