#!/bin/sh
# Installs the Debian packages that the tests use, if any is missing. Does nothing, quickly, where all are there.
set -eu

missing=
command -v npm >/dev/null || missing="$missing nodejs npm" # the TypeScript client
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql" # the production database
[ -d /usr/share/pocketsphinx/test ] || missing="$missing pocketsphinx-testdata" # English speech with transcripts
command -v espeak-ng >/dev/null || missing="$missing espeak-ng" # Korean speech, of which no registry has a recording
command -v curl >/dev/null || missing="$missing curl" # the README's examples
command -v docker-registry >/dev/null || missing="$missing docker-registry" # speaks the protocol of Ollama's registry

[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "The tests need what Debian calls:$missing. There is no apt-get here: install them your system's way." >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    sudo=sudo
    command -v sudo >/dev/null || {
        echo "The tests need Debian packages. As root: apt-get install$missing" >&2
        exit 1
    }
fi
echo "Installing the Debian packages that the tests need:$missing"
$sudo apt-get update -qq
# shellcheck disable=SC2086 # one word a package
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing
