# shellcheck shell=bash
# Shared functions and paths of the scripts. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The directory of the project's own tools, which git ignores. Several clones on
# one machine can share it.
tools=${TASKPASS_TOOLS:-$root/.tools}
# shellcheck disable=SC2034 # read by the scripts that source this
venv=$tools/venv
# A second environment, for packages that need other versions of the same packages.
# shellcheck disable=SC2034
description=$tools/description
# The environment that builds the documentation site.
# shellcheck disable=SC2034
docs=$tools/docs
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
