# Sourced by test.sh and quickstart.sh: keeps the Python environment .venv at the project root.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
#   prepare_environment run    # what training and serving need: requirements.txt and this package
#   prepare_environment dev    # the same, and the tools of scripts/test.sh
#   "$venv_python" -m ...
#
# Another TensorFlow, in an environment of its own, .venv-tf2.19:
#
#   choose_tensorflow 2.19     # before prepare_environment; scripts/tensorflow-2.19.txt has the pins
#
# The second call installs nothing: a stamp file inside .venv holds a checksum of what was asked
# for. A call that was killed leaves no stamp, so the next one goes on from there.
# PYTHON=/path/to/python3.x chooses the Python that .venv is made with (remove .venv to change it).
# Written for bash 3.2, which macOS has.

project_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$project_root/.venv"
venv_python="$venv/bin/python"
other_tensorflow="" # file of requirements that are laid over those of the project

say() {
  printf '%s: %s\n' "$(basename "$0")" "$*"
}

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# $1: a version that scripts/tensorflow-VERSION.txt has the pins of.
choose_tensorflow() {
  other_tensorflow="$project_root/scripts/tensorflow-$1.txt"
  if [ ! -f "$other_tensorflow" ]; then
    fail "--tensorflow=$1 has no pins; these have:" \
      "$(cd "$project_root/scripts" && ls tensorflow-*.txt | sed 's/tensorflow-//;s/.txt//' | xargs)." \
      "Without --tensorflow it is the version in requirements.txt."
  fi
  venv="$project_root/.venv-tf$1"
  venv_python="$venv/bin/python"
}

# Succeeds if $1 is a Python that can make the environment.
is_usable_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' \
    >/dev/null 2>&1
}

# Sets base_python; 3.11 first, because the pinned versions are tested with it.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.10 python3 python
  do
    if is_usable_python "$candidate"; then
      base_python="$candidate"
      return
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then
      fail "PYTHON=$PYTHON is not Python 3.10 to 3.13 with the modules venv and ensurepip."
    fi
  done
  fail "found no Python 3.10 to 3.13 with the modules venv and ensurepip. Install one (on Debian" \
    "and Ubuntu: apt-get install python3 python3-venv), or name one: PYTHON=/path/to/python3.11 $0"
}

pip_install() {
  "$venv_python" -m pip install --quiet --disable-pip-version-check --no-input "$@"
}

make_venv() {
  # A .venv without a working pip is one whose making was cut off.
  if "$venv_python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  find_python
  say "making $(basename "$venv") with $("$base_python" --version)"
  "$base_python" -m venv --clear "$venv" || fail "could not make $venv; see the message above."
}

# $1: run or dev. Prints the checksum of everything that decides what is installed.
environment_checksum() {
  {
    printf '%s\n' "$1" "$project_root"
    cat "$project_root/requirements.txt" "$project_root/pyproject.toml" "$venv/pyvenv.cfg" \
      ${other_tensorflow:+"$other_tensorflow"}
  } | cksum
}

# $1: this package with its extras.
install_requirements() (
  cd "$project_root" && pip_install --requirement requirements.txt --editable "$1" || return
  # All else stays as it is pinned. pip would warn that the extra `cpu` asks for another TensorFlow.
  if [ -n "$other_tensorflow" ]; then
    pip_install --no-warn-conflicts --requirement "$other_tensorflow"
  fi
)

prepare_environment() {
  local kind="$1" package="." checksum stamp
  if [ "$kind" = dev ]; then
    package=".[dev]"
  fi
  make_venv
  # What `dev` installs includes what `run` does, so either stamp serves `run`.
  for stamp in "$kind" dev; do
    if [ "$(cat "$venv/.installed-$stamp" 2>/dev/null)" = "$(environment_checksum "$stamp")" ]; then
      return
    fi
  done
  say "installing requirements.txt and $package into $(basename "$venv") (some minutes the first time)"
  rm -f "$venv"/.installed-*
  install_requirements "$package" ||
    fail "pip could not install the requirements; see its message above. Run this again to go on," \
      "or remove $venv first to start afresh."
  checksum="$(environment_checksum "$kind")"
  printf '%s\n' "$checksum" >"$venv/.installed-$kind.part"
  mv "$venv/.installed-$kind.part" "$venv/.installed-$kind"
  say "installed"
}
