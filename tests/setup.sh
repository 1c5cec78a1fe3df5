#!/usr/bin/env bash
# Installs what the demo and the suites call and this machine lacks: Debian
# packages by apt, and cnitool (the CNI reference runtime) by Go's module proxy
# into target/tools. Changes nothing, and takes some milliseconds, where all of
# it is there. Says what it installs before it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The newest release that needs no more than Go 1.21. CNI 1.1 needs 1.2 or newer.
CNITOOL_VERSION=v1.3.0
# Used where apt's Go is older than 1.21 (Debian 12: 1.19) to build cnitool only.
GO_BOOTSTRAP=go1.22.12
TOOLS=target/tools

# File or command that must exist, and the package that brings it.
PACKAGES=(
    cc=gcc
    conntrack=conntrack
    containerd=containerd
    ctr=containerd
    dnsmasq=dnsmasq-base
    ip=iproute2
    iptables=iptables
    nft=nftables
    nsenter=util-linux
    ping=iputils-ping
    podman=podman
    runc=runc
    strace=strace
    sysctl=procps
    tar=tar
    /usr/lib/cni/bridge=containernetworking-plugins
)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# sbin is not on the PATH of every Debian user.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

missing_packages() {
    local entry need
    for entry in "${PACKAGES[@]}"; do
        need=${entry%%=*}
        case $need in
            /*) [[ -e $need ]] || printf '%s\n' "${entry#*=}" ;;
            *) type -P "$need" >/dev/null || printf '%s\n' "${entry#*=}" ;;
        esac
    done
    # Static binaries need the C library's archive.
    compgen -G '/usr/lib/*/libc.a' >/dev/null || printf 'libc6-dev\n'
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif type -P sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed to run: $*"
    fi
}

apt_install() {
    type -P apt-get >/dev/null || die "no apt-get here: install by hand: $*"
    say "installing by apt: $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# go_is_new GO: at least 1.21, which cnitool's go.mod asks for.
go_is_new() {
    local version
    version=$("$1" env GOVERSION)
    [[ $version =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21))
}

# newer_go OLD_GO DIR: fetches a newer toolchain through the module proxy, as
# newer go commands do by themselves, and unpacks it into DIR/go. In that form
# nothing is executable and each go.mod is called _go.mod.
newer_go() {
    local go=$1 dir=$2 arch from
    arch=$("$go" env GOOS)-$("$go" env GOARCH)
    say "apt's Go is older than 1.21: fetching $GO_BOOTSTRAP for this build only"
    (cd "$dir" && "$go" mod download "golang.org/toolchain@v0.0.1-$GO_BOOTSTRAP.$arch")
    from=$("$go" env GOMODCACHE)/golang.org/toolchain@v0.0.1-$GO_BOOTSTRAP.$arch
    cp -r --no-preserve=mode "$from" "$dir/go"
    find "$dir/go" -name _go.mod -execdir mv _go.mod go.mod \;
    chmod +x "$dir"/go/bin/*
    find "$dir/go/pkg/tool" -type f -exec chmod +x {} +
}

install_cnitool() {
    local go scratch
    type -P go >/dev/null || apt_install golang-go ca-certificates
    go=$(type -P go)
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064 # the path of now
    trap "rm -rf '$scratch'" EXIT
    if ! go_is_new "$go"; then
        # The module cache too: it would hold the toolchain for nothing.
        export GOPATH=$scratch/path GOFLAGS=-modcacherw
        newer_go "$go" "$scratch"
        go=$scratch/go/bin/go
    fi
    say "installing cnitool $CNITOOL_VERSION into $TOOLS with $("$go" env GOVERSION)"
    env -u GOROOT GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN="$scratch/bin" \
        "$go" install "github.com/containernetworking/cni/cnitool@$CNITOOL_VERSION"
    mkdir -p "$TOOLS"
    # The version is part of the name, so that another pin is another file.
    mv "$scratch/bin/cnitool" "$TOOLS/cnitool-$CNITOOL_VERSION"
    ln -sfn "cnitool-$CNITOOL_VERSION" "$TOOLS/cnitool"
}

mapfile -t packages < <(missing_packages)
((${#packages[@]} == 0)) || apt_install "${packages[@]}"
[[ -x $TOOLS/cnitool-$CNITOOL_VERSION && -L $TOOLS/cnitool ]] || install_cnitool
# Without it a test leaves something out, and says so.
[[ -x $TOOLS/nft-newest/nft ]] || tests/newest-nft.sh || say "nft of this machine alone is tested"
