#!/usr/bin/env bash
# mlflow-skinny 3.17.2 cannot log to this machine: a folder (file:), the store that MLflow used by default for years, is
# refused as in maintenance mode, and sqlite, which the refusal recommends instead, is refused because the skinny
# package has no database store. Only a server can be logged to; the full package mlflow accepts sqlite.
# Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import mlflow

print("mlflow-skinny", mlflow.__version__)
expected = {f"file:{sys.argv[1]}/runs": "maintenance mode", f"sqlite:///{sys.argv[1]}/runs.db": "unsupported URI"}
for place, reason in expected.items():
    try:
        mlflow.MlflowClient(tracking_uri=place).create_experiment("trial")
    except Exception as error:
        print(f"{place.partition(':')[0]}: {type(error).__name__}: {str(error).strip()[:120]}")
        assert reason in str(error), "this has changed: another reason"
    else:
        raise SystemExit(f"this has changed: {place} is accepted")
PYTHON
