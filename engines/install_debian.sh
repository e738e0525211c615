#!/bin/sh
# Installs what libr1v needs of Debian 12, if something of it is missing. Needs root then, or sudo.
#   install_debian.sh          build and test
#   install_debian.sh --fuzz   clang and its sanitizers, for engines/fuzz, too
set -eu

packages="g++ cmake ninja-build pkg-config
  nlohmann-json3-dev libpcre2-dev libutf8proc-dev libjpeg-dev zlib1g-dev libdeflate-dev libwebp-dev libcli11-dev libgtest-dev"
[ "${1:-}" = --fuzz ] && packages="$packages clang libclang-rt-14-dev"

if ! command -v dpkg-query > /dev/null; then
  echo "not Debian: install what these packages hold by hand: $packages" >&2
  exit 0
fi

missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
$as_root apt-get update -qq
# shellcheck disable=SC2086  (a list of names)
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing > /dev/null
