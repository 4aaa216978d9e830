"""A complete, tiny model set for tests of the service.

Every model is fitted by the product's own functions, in seconds.

The encoder has random weights; pattern head and attention model are fitted on the generated
cohort's patches and labels, the risk model on simulated outcomes. What it says is worth nothing;
that it says it through every real path is the point.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines import storage
from pipelines.annotations import patch_labels, read_annotations
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.manifest import read_manifest
from pipelines.slides.opening import open_slide
from training.cards import versions
from training.encoder.architecture import EncoderConfig
from training.encoder.embed import embed_shards, load_bag
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.vit import ViTConfig
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL, load_model_set
from training.registry.registry import Registry
from training.risk.covariates import T_STAGES, Covariates
from training.risk.fitting import Patients, RiskModelConfig, fit_risk_model
from training.risk.risk_model import save_risk_model
from training.slide.gleason import grade_group
from training.slide.pattern_head import fit_pattern_head
from training.slide.slide_model import AttentionConfig, SlideModel, fit_attention, save_slide_model

SPEC = PatchSpec(size=64, mpp=0.5)
"""Small patches: the generated slides of the suite then have several shards."""
PATIENTS = 200


def make_model_set(manifest: str, out: str) -> str:
    """Fit the three models on a manifest's slides and write them below `out`; returns its URI."""
    config = EncoderConfig(
        network=ViTConfig(size=SPEC.size, dim=32, depth=2, heads=2, layer_scale=None), spec=SPEC
    )
    encoder_hash = save_encoder(storage.join(out, ENCODER), random_encoder(config, precision="f32"))
    encoder, store = load_encoder(storage.join(out, ENCODER)), f"{out}-embeddings"

    bags, labels, groups = [], [], []
    for row in read_manifest(manifest):
        with open_slide(row.uri) as slide:
            shards = index_slide(slide, SPEC, organisation="test").shards
            side = SPEC.size * SPEC.mpp / slide.mpp
        embed_shards(shards, encoder, store)
        bag = load_bag(shards, encoder.key, store)
        bags.append(bag.embeddings)
        labels.append(patch_labels(read_annotations(row.annotation).regions, bag.x, bag.y, side))
        groups.append(grade_group(row.label))
    card = {
        "name": "test slide model",
        "encoder_hash": encoder_hash,
        "spec": SPEC.to_dict(),
        "versions": versions("acinus"),
    }
    slide_model = save_slide_model(
        storage.join(out, SLIDE_MODEL),
        SlideModel(
            head=fit_pattern_head(np.concatenate(bags), np.concatenate(labels)),
            attention=fit_attention(
                bags, groups, AttentionConfig(hidden=8, attention=4, epochs=20)
            ),
            card=card,
        ),
    )

    rng = np.random.default_rng(0)
    slides = np.stack([slide_model.predict(bag).embedding for bag in bags])
    patients = [
        Covariates(
            age=float(rng.uniform(55, 80)),
            psa=float(rng.lognormal(2, 0.7)),
            t_stage=T_STAGES[int(rng.integers(len(T_STAGES)))],
            primary=int(rng.integers(3, 6)),
            secondary=int(rng.integers(3, 6)),
        )
        for _ in range(PATIENTS)
    ]
    hazard = np.array([0.02 * 2.0 ** (one.primary - 3) for one in patients])
    time = np.minimum(rng.exponential(1 / hazard), 12.0)
    risk_model = fit_risk_model(
        Patients(
            embeddings=slides[rng.integers(len(slides), size=PATIENTS)],
            covariates=patients,
            time=time,
            cause=np.where(time < 12.0, 1, 0),
        ),
        card={
            "name": "test risk model",
            "encoder_hash": encoder_hash,
            "slide_model_hash": slide_model.hash,
            "simulated_outcomes": True,
            "versions": versions("acinus"),
        },
        config=RiskModelConfig(components=1, replicas=5),
    )
    save_risk_model(storage.join(out, RISK_MODEL), risk_model)
    load_model_set(out)
    return storage.as_uri(out)


def make_benign_model_set(models: str, out: str) -> str:
    """A set with the same encoder whose slide model finds nothing but benign tissue."""
    found = load_model_set(models, precision="f32")
    save_encoder(storage.join(out, ENCODER), found.encoder)
    head = found.slide_model.head
    benign = replace(head, weight=0 * head.weight, bias=np.array([50, 0, 0, 0], np.float32))
    slide_model = save_slide_model(
        storage.join(out, SLIDE_MODEL), replace(found.slide_model, head=benign)
    )
    risk = found.risk_model
    card = {**risk.card, "slide_model_hash": slide_model.hash}
    save_risk_model(storage.join(out, RISK_MODEL), replace(risk, card=card))
    return storage.as_uri(out)


def make_registry(models: str, folder: str) -> tuple[Registry, str, str]:
    """A registry with that set, which is in production, and one that finds only benign tissue.

    Returns:
        Registry, and the two versions.
    """
    registry = Registry(f"{folder}/registry")
    both = (models, make_benign_model_set(models, f"{folder}/benign"))
    first, benign = (registry.add(each, by="test") for each in both)
    for version in (first, benign):
        registry.reproduce(version, {"lowest_icc": 0.99, "lowest_of": "risk"}, by="test")
    registry.promote(first, by="test")
    return registry, first, benign
