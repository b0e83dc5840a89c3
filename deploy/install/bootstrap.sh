#!/bin/sh
# Install all that Armada needs on a Debian-like machine: uv, a Python, system packages, the locked
# environment. Safe to run again. Needs root, or sudo without a password, only where a system
# package is missing.
set -eu
cd "$(dirname "$0")/../.."

say() { printf 'armada install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

apt_updated=
apt_install() {
    command -v apt-get >/dev/null 2>&1 ||
        die "not a Debian-like machine: install the equivalents of: $* (then run this again)"
    if [ -z "$apt_updated" ]; then
        as_root apt-get update -qq >/dev/null ||
            die "missing system packages: run 'sudo apt-get install -y $*' and then this again"
        apt_updated=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get could not install: $*"
}

# `bootstrap.sh browser`: what the test of report.html looks at it with, and nothing else.
if [ "${1:-}" = browser ]; then
    command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 ||
        apt_install chromium
    exit 0
fi

# System packages: the broker, and a software EGL for the twin's cameras.
missing=
command -v mosquitto >/dev/null 2>&1 || [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto"
has_library() { /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }
has_library libEGL.so.1 || missing="$missing libegl1"
has_library libEGL_mesa.so.0 || missing="$missing libegl-mesa0"
[ -n "$(find /usr/lib -name swrast_dri.so -print -quit 2>/dev/null)" ] ||
    has_library libgallium || missing="$missing libgl1-mesa-dri"
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086
    apt_install $missing
fi

# uv: the one on PATH, or one of our own in .tools.
if command -v uv >/dev/null 2>&1; then
    uv=$(command -v uv)
else
    uv=$PWD/.tools/uv/bin/uv
    if [ ! -x "$uv" ]; then
        command -v python3 >/dev/null 2>&1 || apt_install python3 python3-venv
        python3 -m venv .tools/uv >/dev/null 2>&1 || {
            apt_install python3-venv
            python3 -m venv --clear .tools/uv
        }
        .tools/uv/bin/pip install --quiet uv ||
            die "could not install uv from PyPI: install uv by hand (docs.astral.sh/uv) and run this again"
    fi
fi

# A Python that LeRobot accepts. pyenv's shims name interpreters that they will not start, so its
# versions are looked up by path.
find_python() {
    for candidate in \
        "${UV_PYTHON:-}" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3 \
        /usr/bin/python3.12 /usr/bin/python3.13 /usr/local/bin/python3.12 /usr/local/bin/python3.13; do
        if [ -x "$candidate" ] && "$candidate" -c 'import sys, ssl, sqlite3; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    "$uv" python find --no-project '>=3.12,<3.14' 2>/dev/null
}
if ! python=$(find_python); then
    say "no Python 3.12 or 3.13 found: asking uv to install one"
    "$uv" python install --quiet 3.12 2>/dev/null || apt_install python3.12 python3.12-venv
    python=$(find_python) ||
        die "no Python 3.12 or 3.13: install one (for example 'uv python install 3.12') and run this again"
fi

# Compiled once here: a process that imports torch and LeRobot would otherwise pay seconds each start
# wherever bytecode cannot be written.
exec "$uv" sync --quiet --frozen --compile-bytecode --python "$python"
