# shellcheck shell=bash
# Sourced by ./start and ./test, in the repository's root: finds a Python, makes .venv, fills it from uv.lock.
#
# Everything goes into .venv. Only Debian packages that are missing altogether (git, Python's venv)
# are installed beside it, and only when we are root and apt is there.

at_least_311='import sys; sys.exit(sys.version_info < (3, 11))'

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

install_packages() { # Debian package names -> true if apt installed them
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  say "Installing $* with apt-get."
  local install=(apt-get install -y --no-install-recommends "$@")
  DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null 2>&1 </dev/null ||
    { apt-get update >/dev/null 2>&1 </dev/null &&
      DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null 2>&1 </dev/null; }
}

find_python() { # prints the first Python >= 3.11; NOTEBOOKS_PYTHON comes first
  local name
  for name in ${NOTEBOOKS_PYTHON:+"$NOTEBOOKS_PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$name" >/dev/null && "$name" -c "$at_least_311" 2>/dev/null; then
      command -v "$name"
      return 0
    fi
  done
  command -v uv >/dev/null && uv python find --no-python-downloads '>=3.11' 2>/dev/null
}

make_venv() {
  local python package
  if ! python="$(find_python)"; then
    { install_packages python3 python3-venv && python="$(find_python)"; } ||
      fail "Python 3.11 or newer is needed and none was found; install it (on Debian and Ubuntu: apt install python3 python3-venv), then run this again."
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    { install_packages "$package" && "$python" -c 'import ensurepip, venv' 2>/dev/null; } ||
      fail "$python has no venv module; install it (on Debian and Ubuntu: apt install $package), then run this again."
  fi
  say "Making .venv with $python."
  "$python" -m venv --clear .venv || fail "$python could not make $PWD/.venv; check the disk, then run this again."
  printf '%s' "$PWD" >.venv/.made-in
}

prepare() { # a name for the stamp, then what `uv sync` is given besides --frozen
  local stamp_file=".venv/.prepared-$1" stamp uv
  shift
  command -v git >/dev/null || install_packages git ||
    fail "git is needed and was not found; install it (on Debian and Ubuntu: apt install git), then run this again."
  stamp="$PWD $(cat uv.lock pyproject.toml scripts/environment.sh | sha256sum | cut -d' ' -f1)"
  [ -x .venv/bin/python ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$stamp" ] && return 0

  # ./start and ./test at the same time would fill one .venv twice.
  exec 9<. && { ! command -v flock >/dev/null || flock 9; }
  # The scripts in a virtual environment name the place where it was made: a moved one is made anew.
  if [ -e .venv/.made-in ] && [ "$(cat .venv/.made-in)" != "$PWD" ]; then rm -rf .venv; fi
  .venv/bin/python -c "$at_least_311" 2>/dev/null || make_venv
  uv="$(sed -n '/^name = "uv"$/{n;s/^version = "\(.*\)"$/\1/p;}' uv.lock)"
  if ! .venv/bin/python -m uv --version >/dev/null 2>&1; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv" ||
      fail "uv could not be installed from the Python package index; check the network, then run this again."
  fi
  say "Installing what uv.lock names into .venv (once; about a minute)."
  # Compiled now: a person's server runs as somebody who may not write here, and would compile at each start.
  UV_PROJECT_ENVIRONMENT="$PWD/.venv" .venv/bin/python -m uv sync --quiet --frozen --inexact --compile-bytecode "$@" ||
    fail "The packages that uv.lock names could not be installed; check the network and the disk, then run this again."
  printf '%s' "$stamp" >"$stamp_file"
  exec 9<&-
}
