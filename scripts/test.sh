#!/usr/bin/env bash
# All checks: formatting, lint, types, tests. Makes the environment first (see _environment.sh).
# Runs every check even after one failed, and exits non-zero if any did.
#
#   scripts/test.sh                               # what CI runs
#   scripts/test.sh --slow                        # the slow tests too
#   scripts/test.sh tests/test_encoder.py -k erf  # the rest goes to pytest; paths from the root
#   scripts/test.sh -n 0 --pdb                    # one process, as a debugger needs
#   scripts/test.sh --tensorflow=2.19             # the tests alone, with TensorFlow 2.19 (or 2.21)
#
# BERT_TF_TEST_WORKERS=N  number of test processes (2 by default; each holds its own TensorFlow)
# BERT_TF_SHARED=FOLDER   folder of real data; the checks that need it are skipped without
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

marker="not slow"
pytest_arguments=()
for argument in "$@"; do
  case "$argument" in
    --slow) marker="" ;;
    --tensorflow=*) choose_tensorflow "${argument#*=}" ;;
    *) pytest_arguments+=("$argument") ;;
  esac
done

prepare_environment dev
cd "$project_root"

failed=""
check() {
  say "$*"
  "$venv_python" -m "$@" || failed="$failed, $*"
}

if [ -z "$other_tensorflow" ]; then # the source is the same for every TensorFlow
  check ruff format --check .
  check ruff check .
  check mypy bert_tf scripts
fi

say "pytest"
pytest_status=0
# loadfile: tests of one file share their fixtures. bash 3.2 needs the `+` for an empty array.
"$venv_python" -m pytest -q -m "$marker" -n "${BERT_TF_TEST_WORKERS:-2}" --dist loadfile \
  ${pytest_arguments[@]+"${pytest_arguments[@]}"} || pytest_status=$?

# Where all is well, and where only tests failed, pytest's summary is the last that is printed.
if [ -n "$failed" ]; then
  fail "these checks failed before the tests ran: ${failed#, }"
fi
exit "$pytest_status"
