# Sourced by the scripts beside it and below: goes to the project's root and makes .venv match requirements.lock.
#
# uv installs if it runs or can be installed, else pip; wheels only, checked by hash. PYTHON names another interpreter.
# The stamp is written last, so the next run repairs an interrupted one. All output goes to stderr: the installer's own
# progress on a terminal, a few lines elsewhere.
set -eu
cd "$(dirname "$0")/.."
[ -f requirements.lock ] || cd ..
UV_VERSION=0.13.9
STAMP=.venv/ceremony-stamp

fail() {
    echo "$0: $1" >&2
    exit 2
}

# The candidate is run, because a shim of that name can exist and fail.
usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

version_of() {
    "$1" -c 'import platform; print(platform.python_version())'
}

pick_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11, 3.12 or 3.13 that runs"
        echo "$PYTHON"
        return
    fi
    for candidate in .venv/bin/python python3 python3.13 python3.12 python3.11; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found as python3, python3.13, python3.12 or python3.11: install one, or set PYTHON"
}

pick_uv() {
    for candidate in uv .venv/uv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

inputs() {
    version_of .venv/bin/python
    cat requirements.lock pyproject.toml proto/pyproject.toml scripts/env.sh | cksum
    pwd
}

make_venv() {
    echo "$0: making .venv with Python $(version_of "$1")" >&2
    rm -rf .venv
    uv=$(pick_uv)
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --python "$1" .venv >&2
    else
        "$1" -m venv .venv >&2 || fail "$1 cannot make a virtual environment: install its venv module, or uv"
    fi
}

# Runs a command with --quiet at its end, or without it on a terminal, where uv and pip then show their progress.
showing_progress() {
    if [ -t 2 ]; then "$@" >&2; else "$@" --quiet >&2; fi
}

fetch_uv() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null ||
        fail "there is neither uv nor pip: remove .venv and try again"
    echo "$0: fetching uv" >&2
    showing_progress .venv/bin/python -m pip install --only-binary :all: --target .venv/uv "uv==$UV_VERSION" || true
    uv=$(pick_uv)
}

# uv trusts its own list of authorities. A company's own authority is in the system's store only, so that store is used
# when uv refuses a certificate. The reason is read from a second run, because the first one writes to the terminal.
uv_install() {
    showing_progress "$uv" "$@" && return
    echo "$0: uv failed; running it again to learn the reason" >&2
    said=$("$uv" "$@" --quiet 2>&1) && return
    case "$said" in
        *certificate*) [ -z "${UV_SYSTEM_CERTS:-}${UV_NATIVE_TLS:-}" ] || fail "uv refused a certificate of the system's store too" ;;
        *) fail "uv cannot install what requirements.lock names; its reason stands above" ;;
    esac
    echo "$0: uv refused a certificate; trying again with the certificates of the system" >&2
    use_system_certificates
    showing_progress "$uv" "$@" || fail "uv refused a certificate, also with the certificates of the system"
}

use_system_certificates() {
    case "$("$uv" pip sync --help 2>&1)" in
        *--system-certs*) export UV_SYSTEM_CERTS=true ;;
        *) export UV_NATIVE_TLS=true ;; # the name in older releases
    esac
}

install_all() {
    [ -n "$uv" ] || fetch_uv
    if [ -n "$uv" ]; then
        # Compiled once, as pip does: with PYTHONDONTWRITEBYTECODE set, each start of a program would compile again.
        uv_install pip sync --python .venv/bin/python --only-binary :all: --require-hashes --compile-bytecode \
            requirements.lock
        "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e ./proto -e . >&2
    else
        echo "$0: uv cannot be had here, pip takes some minutes" >&2
        showing_progress .venv/bin/python -m pip install --only-binary :all: --require-hashes -r requirements.lock
        .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e ./proto -e . >&2
    fi
}

if ! usable .venv/bin/python || [ ! -f "$STAMP" ] || [ "$(inputs)" != "$(cat "$STAMP")" ] || [ -n "${PYTHON:-}" ]; then
    python=$(pick_python)
    uv=$(pick_uv)
    if [ "$python" != .venv/bin/python ] && { ! usable .venv/bin/python ||
        [ "$(version_of "$python")" != "$(version_of .venv/bin/python)" ]; }; then
        make_venv "$python"
    fi
    if [ ! -f "$STAMP" ] || [ "$(inputs)" != "$(cat "$STAMP")" ]; then
        echo "$0: installing $(grep -c '^[a-z].*==' requirements.lock) packages of requirements.lock into .venv" >&2
        begun=$(date +%s)
        rm -f "$STAMP"
        install_all
        echo "$0: installed in $(($(date +%s) - begun)) s" >&2
        inputs >"$STAMP"
    fi
fi
