#!/bin/sh
# Generates the Python code of the protos, beside them or into a folder: generate-protos.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH" # protoc-gen-mypy is there
out=${1:-.}
"$python" -m grpc_tools.protoc --proto_path=. \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
    fleet/planning_ceremony/v1/planning_ceremony.proto fleet/ray_executor/v1/ray_executor.proto
