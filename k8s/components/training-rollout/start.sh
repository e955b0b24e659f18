#!/bin/sh
# Asks for a rollout of the newest version of MODEL in /models, with the default plan.
set -eu

newest=$(ls "/models/$MODEL" | grep -E '^[0-9]+$' | sort -n | tail -n 1)
[ -n "$newest" ] || { echo "error: /models/$MODEL has no version" >&2; exit 1; }
kubectl create -f - <<MANIFEST
apiVersion: sluice.dev/v1alpha1
kind: ModelRollout
metadata:
  name: $MODEL-$newest
spec:
  model: $MODEL
  version: $newest
MANIFEST
