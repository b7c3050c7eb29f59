#!/usr/bin/env bash
# Fetches what the GPU machine lacks, so that it can travel there without a network: wheels for
# Python 3.12 on x86-64 into .whl, and the embedded model's tokenizer into .gpu/tokenizer.
#
#   tools/gpu_wheels.sh [PYTHON]        PYTHON [python3] has pip, this package and its model
#
# Both folders are ignored by git. docs/gpu.md says how they are used.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

wheels=(
    pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-extensions typing-inspection
    msgspec==0.22.0 platformdirs==4.14.5 py3langid==0.4.0 rapidfuzz==3.14.6
    jsonschema==4.26.0 jsonschema-specifications referencing rpds-py gguf==0.19.0
    datasets==5.2.0 "dill<0.4.2" "multiprocess<0.70.20" trl==1.16.0
    liger-kernel==0.8.5 cut-cross-entropy==25.1.1
)
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done

# Two versions of one package would stop the whole installation there.
rm -rf .whl .whl.partial
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" --dest .whl.partial "${wheels[@]}"
found=$(find .whl.partial -name '*.whl' | wc -l)
if [ "$found" -ne "${#wheels[@]}" ]; then
    echo "$found wheels came, and ${#wheels[@]} were asked for" >&2
    exit 1
fi
mv .whl.partial .whl

"$python" - <<'PYTHON'
import shutil
from pathlib import Path

from rlaif.engines.builtin import resolve

source, target = resolve("builtin/smollm2-135m-instruct"), Path(".gpu/tokenizer")
target.mkdir(parents=True, exist_ok=True)
for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    shutil.copy(source / name, target / name)
PYTHON

size() { du -cb "$@" | tail -1 | awk '{printf "%.1f MB", $1 / 1e6}'; }
echo "$found wheels in .whl: $(size .whl/*.whl)"
echo "the tokenizer in .gpu/tokenizer: $(size .gpu/tokenizer/*)"
echo "the working tree that goes with them: $(size $(git ls-files --cached --others --exclude-standard))"
