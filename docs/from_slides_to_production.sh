#!/usr/bin/env bash
# From a folder of slides to a model in production: every step is a job of a Ray cluster.
#
#   RAY_API_SERVER_ADDRESS=http://head:8265 docs/from_slides_to_production.sh MANIFEST TILES OUT
#
# MANIFEST: slides with case, label and annotation; TILES: labelled tiles, a folder a class; OUT: a
# folder that all nodes share, or s3://. OUTCOMES names a table of outcomes; without it, they are
# simulated. Stops at the first step that fails, also where the gate refuses the version.
set -euo pipefail
manifest=$1 tiles=$2 out=$3
log=$(mktemp)
encoder=${ENCODER:-efficientnet_lite0}
cd "$(dirname "$0")/.."

acinus() { ray job submit --log-style record --working-dir . -- acinus "$@"; }

if [ -n "${OUTCOMES:-}" ]; then outcomes=(--outcomes "$OUTCOMES"); else outcomes=(--simulate); fi
read -r -a measured <<< "${MEASURED:?three or more slides that differ}"

acinus prepare "$manifest" --out "$out/cohort" --encoder "$encoder"
acinus embed "$out/cohort" --encoder "$encoder" --split train
acinus probe --tiles "$tiles" --encoder "$encoder" --out "$out/probe"
acinus fit-slide --data "$out/cohort" --encoder "$encoder" --out "$out/models/slide_model"
acinus fit-risk "${outcomes[@]}" --data "$out/cohort" --encoder "$encoder" \
  --slide-model "$out/models/slide_model" --out "$out/models/risk_model"
acinus models add "$out/models" --encoder "$encoder" --registry "$out/registry" | tee "$log"
version=$(grep -oE '[0-9a-f]{64}' "$log" | tail -1)
acinus models reproduce "$version" "${measured[@]}" --registry "$out/registry"
acinus models promote "$version" --registry "$out/registry"
