#!/usr/bin/env bash
# The benchmark on a GPU, with times, as Markdown; about five minutes.
#
#   bash benchmarks/gpu.sh pack     with a network: fetches basicsr and lpips into build/gpu, to go along with the checkout
#   bash benchmarks/gpu.sh > X.md   on the machine with the GPU, without a network
#
# That machine has torch, torchvision, OpenCV, SciPy, PyYAML and tqdm. basicsr and lpips are taken from build/gpu where it lacks
# them. Arguments are those of benchmarks/bench.py, --gpu by default; PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ "${1:-}" = pack ]; then
    "$python" -m pip wheel -q --no-deps --no-build-isolation -w build/gpu basicsr lpips
    exit
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for name in basicsr lpips; do
    if ! "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$name') is None)"; then
        wheel=$(echo build/gpu/$name-*.whl)
        [ -e "$wheel" ] || { echo "$name is missing. Run 'bash benchmarks/gpu.sh pack' where there is a network." >&2; exit 1; }
        "$python" -m zipfile -e "$wheel" "$site"
    fi
done
PYTHONPATH="$PWD:$site" timeout 480 "$python" -m benchmarks.bench ${@:---gpu}
