#!/usr/bin/env bash
# Unpacks the nft of a newer Debian into target/tools/nft-newest: what the agent
# writes must be readable by older and newer ones. From the mirror and with the
# keys that this machine's apt has; nothing is installed, and its libraries and
# their loader come with it. Fails, and says why, where that cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TARGET=target/tools/nft-newest

say() { printf 'setup: %s\n' "$*"; }
die() { say "no newer nft: $*"; exit 1; }

type -P apt-get dpkg-deb >/dev/null || die "this is no Debian"
# Of the suites that are configured any will do: a mirror has all.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Identifier: Packages' |
    sed -n '/-security/d; s/^Debian //p' | sed -n 1p)
[[ -n $mirror ]] || die "apt has no mirror of Debian"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{state/lists/partial,cache/archives/partial,root}
: >"$scratch/status"
options=
[[ ! -e $KEYRING ]] || options="[signed-by=$KEYRING] "
printf 'deb %s%s %s main\n' "$options" "$mirror" "$SUITE" >"$scratch/sources.list"
apt=(
    apt-get -qq
    -o Dir::Etc::SourceList="$scratch/sources.list"
    -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null
    -o Dir::Etc::PreferencesParts=/dev/null
    -o Dir::State="$scratch/state"
    -o Dir::State::status="$scratch/status"
    -o Dir::Cache="$scratch/cache"
    -o APT::Sandbox::User=root
    -o APT::Update::Error-Mode=any
    -o Acquire::Languages=none
    -o Acquire::Retries=3
)
say "fetching nftables of Debian $SUITE into $TARGET"
"${apt[@]}" update || die "apt cannot use the suite $SUITE"
"${apt[@]}" install -y --download-only --no-install-recommends nftables >/dev/null ||
    die "apt cannot fetch nftables of $SUITE"
for package in "$scratch"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$scratch/root"
done

loader=$(cd "$scratch/root" && find . -name 'ld-linux*.so.*' -type f | sed -n 1p)
libraries=$(cd "$scratch/root" && dirname "$(find . -name 'libnftables.so.1' | sed -n 1p)")
[[ -n $loader && -n $libraries ]] || die "its packages have another form"
cat >"$scratch/root/nft" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$0")
WRAPPER
printf 'exec "$root/%s" --library-path "$root/%s" "$root/usr/sbin/nft" "$@"\n' \
    "${loader#./}" "${libraries#./}" >>"$scratch/root/nft"
chmod +x "$scratch/root/nft"
"$scratch/root/nft" --version >/dev/null || die "it does not run here"
rm -rf "$TARGET"
mkdir -p "$(dirname "$TARGET")"
chmod 755 "$scratch/root"
cp -a "$scratch/root" "$TARGET"
