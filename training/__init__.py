"""Patches in, models out. Five journeys, a room each; open the file that is named first.

    pretrain/   pretrain.py     an encoder from slides without labels (`acinus pretrain`)
    encoder/    encoder.py      patches -> embeddings; embed whole slides (`acinus embed`)
    evaluation/ probe.py        encoders side by side on labelled tiles (`acinus probe`)
    slide/      fit_slide.py    embeddings of a slide -> patterns, grade (`acinus fit-slide`)
    risk/       fit_risk.py     slide embedding and clinical variables -> risk (`acinus fit-risk`);
                                its outcomes are simulated (`simulated_outcomes.py`)

`model_set.py` says whether an encoder, a slide model and a risk model belong together. What the
rooms share is next to it: cards, errors, limits of configurations, precision, threads.

Knows no patient's identity, no HTTP and no database.
"""
