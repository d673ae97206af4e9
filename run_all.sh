#!/usr/bin/env bash
# From a machine with git and Python to executed notebooks and a site. See --help.
set -euo pipefail
caller=$PWD # relative folders are the caller's
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$PWD

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [options]              run the notebooks in order and build the site
       ./run_all.sh --test [pytest args]   run the tests (all of them, two at a time; -m "not slow" for the fast ones)
       ./run_all.sh --lab                  open JupyterLab on notebook 00, in the right environment

options
  --profile NAME   demo (default): two CPU cores and no data · full: DFDC and GPUs
  --data DIR       the folder that holds dfdc_train_part_0, … (default: the sample, which is made in data/sample)
  --work DIR       where crops, masks and runs go (default: work/<name> beside the data)
  --only 02,03     run only these notebooks
  -p NAME VALUE    set a notebook parameter; can be repeated
  --sweep NAME A,B run each notebook that has this parameter once per value, each into its own copy
  --fresh          run finished notebooks again and rebuild the site; keep the sample and the environment
  --no-site        do not build the site
  --help           this text

The first run makes .venv and installs the pinned packages. Later runs continue from what is done.
TEXT
}

find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "run_all.sh: Python 3.11 or newer is needed, but none was found" >&2
  exit 1
}

# Make .venv and install what requirements.lock pins, unless that has been done already.
ensure_environment() {
  local wanted python uv=uv
  wanted=$( (cat requirements.lock pyproject.toml && pwd) | cksum)
  if [ "$(cat .venv/.installed 2>/dev/null || true)" = "$wanted" ] && .venv/bin/python -c "" 2>/dev/null; then
    return
  fi
  rm -f .venv/.installed
  python=$(find_python)
  echo "installing the environment into .venv (several GB the first time) …"
  if command -v uv >/dev/null; then
    .venv/bin/python -c "" 2>/dev/null || uv venv --quiet --clear --python "$python" .venv
  else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet uv
    uv=.venv/bin/uv
  fi
  "$uv" pip install --compile-bytecode --python .venv/bin/python --requirement requirements.lock
  "$uv" pip install --quiet --python .venv/bin/python --no-deps --editable .
  echo "$wanted" >.venv/.installed
}

case "${1:-}" in
  -h | --help)
    usage
    ;;
  --test)
    ensure_environment
    exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "${@:2}"
    ;;
  --lab)
    ensure_environment
    exec .venv/bin/python -m jupyterlab --notebook-dir=. notebooks/00_start_here.ipynb "${@:2}"
    ;;
  *)
    ensure_environment
    cd "$caller"
    exec "$root/.venv/bin/python" "$root/notebooks/run.py" "$@"
    ;;
esac
