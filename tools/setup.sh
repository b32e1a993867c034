#!/usr/bin/env bash
# Make the virtual environment: tools/setup.sh FOLDER
# Needs Python 3.10-3.12 with venv and pip; uses uv where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

fits() { "$1" -c 'import sys; sys.exit(not (3,10) <= sys.version_info[:2] <= (3,12))' 2>/dev/null; }
python=
for p in ${PYTHON:-} python3 python3.12 python3.11 python3.10 python; do if fits "$p"; then python=$p; break; fi; done
[ -n "$python" ] || { echo "No Python 3.10, 3.11 or 3.12 found: install one, or name it with make PYTHON=/path/to/python"; exit 1; }

log=$(mktemp); trap 'rm -f "$log"' EXIT
quietly() { "$@" >"$log" 2>&1 || { status=$?; cat "$log"; echo "Set-up failed at: $*"; exit $status; }; }

# On Linux a plain torch brings gigabytes of CUDA. Without an NVIDIA card take the CPU build,
# unless the wheels come from somewhere already chosen (find-links), or its index cannot be reached.
cpu_index=https://download.pytorch.org/whl/cpu
chosen() { [ -n "${PIP_FIND_LINKS:-}${UV_FIND_LINKS:-}" ] || "$venv/bin/python" -m pip config list 2>/dev/null | grep -q find-links; }
reached() { "$python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; }

mkdir -p data/runs # papermill writes the copies of executed notebooks there, and makes no folder
echo "Setting up $venv with $("$python" --version) (once; some minutes, about 2 GB) ..."
has_pip() { "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
if ! has_pip && ! "$python" -m venv "$venv" >"$log" 2>&1; then # Debian's Python without python3-venv: borrow its pip
    quietly "$python" -m venv --clear --without-pip "$venv"
    has_pip || quietly "$python" -m pip --python "$venv/bin/python" install -q --disable-pip-version-check pip
fi
extra=()
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! chosen && reached; then extra=(--extra-index-url "$cpu_index"); fi
want=(-c constraints.txt -e '.[dev]')
if command -v uv >/dev/null; then # uv does not read pip's settings
    [ -n "${PIP_FIND_LINKS:-}" ] && export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS}
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)} # such as a mirror
    [ -n "$index" ] && export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$index}}
    quietly uv pip install -q --python "$venv/bin/python" --index-strategy unsafe-best-match ${extra[@]+"${extra[@]}"} "${want[@]}"
else
    quietly "$venv/bin/python" -m pip install -q --disable-pip-version-check ${extra[@]+"${extra[@]}"} "${want[@]}"
fi

# Compile the world now, so that the first command need not wait for it; the tests keep compiled code of their own
[ -n "${CI:-}" ] || { echo "Compiling the world (once; half a minute) ..."; "$venv/bin/python" -c '
from steve1.world.envs import BlockWorldEnv
env = BlockWorldEnv(0, (64,64))
env.reset()
env.step({})' >"$log" 2>&1 || true; }

# Git's part: merge notebooks cell by cell, and look at them before a commit. Nothing outside this repository is touched
# (nbdev_install_hooks would also write to the Jupyter settings in one's home). No git, CI or a hook of one's own: left alone.
if [ -z "${CI:-}" ] && hooks=$(git rev-parse --git-path hooks 2>/dev/null); then
    git config --local merge.nbdev-merge.name 'resolve conflicts with nbdev_fix' || true
    git config --local merge.nbdev-merge.driver "'$PWD/$venv/bin/nbdev_merge' %O %A %B %P" || true
    if [ ! -e "$hooks/pre-commit" ] && mkdir -p "$hooks" 2>/dev/null; then
        printf '#!/bin/sh\n[ -x %s/bin/python ] || exit 0\nexec %s/bin/python tools/repo.py pre-commit\n' "$venv" "$venv" >"$hooks/pre-commit" && chmod +x "$hooks/pre-commit" || true
    fi
fi
