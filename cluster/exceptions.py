"""Findings that are accepted: `exceptions.yaml` names each by construct and rule, with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from aws_cdk import Acknowledgment, App, Validations
from cdk_nag import NagPack


class ExceptionsError(Exception):
    """An entry of exceptions.yaml cannot be used; names the entry and the remedy."""


def apply(path: Path, app: App, rules: Sequence[NagPack]) -> None:
    """Acknowledge in the app each finding that `path` lists.

    Raises:
        ExceptionsError: an entry has no reason, or matches no finding of the rules.
    """
    pack_of = {
        (resource.construct_path, violation.rule_name): pack.name
        for pack in rules
        for violation in pack.validate_scope(app).violations
        for resource in violation.violating_resources
    }
    for entry in yaml.safe_load(path.read_text()) or []:
        construct, rule, reason = (
            str(entry.get(field) or "").strip() for field in ("construct", "rule", "reason")
        )
        if not reason:
            raise ExceptionsError(
                f"{path.name}: {construct} {rule} has no reason; say why the finding is accepted"
            )
        pack = pack_of.get((construct, rule))
        if pack is None:
            raise ExceptionsError(
                f"{path.name}: {construct} {rule} matches no finding; remove the entry"
            )
        node = app.node.find_child(construct.split("/")[0])
        for name in construct.split("/")[1:]:
            node = node.node.find_child(name)
        Validations.of(node).acknowledge(Acknowledgment(id=f"{pack}::{rule}", reason=reason))
