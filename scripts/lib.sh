# shellcheck shell=bash
# What the scripts share. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Tools of the project's own live here, out of git. A machine that keeps many
# clones can point them all at one directory.
tools=${TASKPASS_TOOLS:-$root/.tools}
# shellcheck disable=SC2034 # read by the scripts that source this
venv=$tools/venv
# An environment of its own for what needs other versions of the same packages.
# shellcheck disable=SC2034
description=$tools/description
# shellcheck disable=SC2034
node=$tools/node

PATH=$tools/bin:$PATH
export PATH

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
