# Sourced by the stages: brings tools that are no Python packages into the user's cache folder, each once.
#
# An installer is a function `install_NAME` that fills the folder $1; it runs when the folder of this name and version is
# not there yet. The folder appears whole or not at all, also when two stages ask for it at once.
TOOLS="${XDG_CACHE_HOME:-$HOME/.cache}/ceremony-engine/tools"

# tool NAME VERSION: prints the folder of the tool, which the function install_NAME fills first where it is missing.
tool() {
    folder="$TOOLS/$1-$2"
    if [ ! -d "$folder" ]; then
        mkdir -p "$TOOLS"
        fresh=$(mktemp -d "$TOOLS/.$1-XXXXXX")
        echo "== fetching $1 $2" >&2
        if ! "install_$1" "$fresh" "$2" >"$fresh.log" 2>&1; then
            echo "$0: $1 $2 cannot be installed:" >&2
            tail -20 "$fresh.log" >&2
            rm -rf "$fresh" "$fresh.log"
            return 1
        fi
        chmod 755 "$fresh"
        # -T: never into a folder that another stage has made meanwhile
        mv -T "$fresh" "$folder" 2>/dev/null || rm -rf "$fresh"
        rm -f "$fresh.log"
    fi
    echo "$folder"
}

# sync_locked PYTHON FILE: installs what the locked file names, wheels only, into the environment of that Python. uv's own
# list of authorities has none of a company; that one is in the system's store, which is tried second, as in scripts/env.sh.
sync_locked() {
    uv_sync "$@" || UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true uv_sync "$@"
}

uv_sync() {
    .venv/bin/uv pip sync --quiet --python "$1" --only-binary :all: --require-hashes "$2"
}
