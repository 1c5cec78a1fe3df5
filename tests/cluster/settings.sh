# Settings of the cluster, each an environment variable, and what its programs share.
# Sourced, not run.
# shellcheck shell=bash
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$HERE/../.." && pwd)

# What `build` made: programs in bin, images in img. Survives everything.
WORK=${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/trammel-cluster}
# The state of a running cluster. With PREFIX: a second one beside the first.
RUN=${RUN:-$WORK/run}
# A running cluster keeps the settings that `up` had.
# shellcheck disable=SC1091
[[ ! -e $RUN/settings ]] || . "$RUN/settings"
# Of the names of its network namespaces.
PREFIX=${PREFIX:-trmc-}
NODES=${NODES:-2}
# Directory of trammel, trammel-ipam and trammel-agent.
PROGRAMS=${PROGRAMS:-${TRAMMEL_BIN_DIR:-$TREE/target/release}}
# The image of conf/, which `make image` makes.
IMAGE=${IMAGE:-$TREE/target/trammel-image.tar}
# Where Debian's containernetworking-plugins lie. Only loopback is taken.
LOOPBACK=${LOOPBACK:-/usr/lib/cni/loopback}
# native where the kernel has no overlayfs.
SNAPSHOTTER=${SNAPSHOTTER:-overlayfs}

KUBERNETES_VERSION=${KUBERNETES_VERSION:-1.35.4}
COREDNS_VERSION=${COREDNS_VERSION:-1.13.1}

# Pods, Services and the cluster's DNS server, in both families.
POD_CIDRS=10.244.0.0/16,fd00:10:244::/56
SERVICE_CIDRS=10.96.0.0/16,fd00:96::/112
DNS_ADDRESS=10.96.0.10
# The wire between the nodes; .1 is the router, node N has .(10 + N).
WIRE4=192.168.77 WIRE6=fd00:77:

NAME=$(basename "$0")
say() { printf '%s: %s\n' "$NAME" "$*" >&2; }
die() { say "error: $*"; exit 1; }

need_root() { ((EUID == 0)) || die "must be root"; }
# need_cluster: a cluster of `up` has to be there.
need_cluster() { [[ -d $RUN/node1 ]] || die "no cluster in $RUN: run $HERE/up first"; }

node_ip() { echo "$WIRE4.$((10 + ${1#node}))"; }
node_ip6() { echo "$WIRE6:$((10 + ${1#node}))"; }
node_names() { local i; for ((i = 1; i <= NODES; i++)); do echo "node$i"; done; }

# enter NODE COMMAND...: run a command in all namespaces of a node.
enter() {
    local node=$1
    shift
    nsenter -t "$(<"$RUN/$node/init.pid")" --mount --pid --net --uts -- "$@"
}

# kubectl ARGS...: from node1, as cluster-admin.
kubectl() {
    nsenter --net="/run/netns/${PREFIX}node1" \
        "$WORK/bin/kubectl" --kubeconfig "$RUN/kubeconfig" "$@"
}

# define NODE NAME COMMAND...: what `proc NODE NAME start` runs.
define() {
    local node=$1 name=$2
    shift 2
    basename "$1" >"$RUN/$node/$name.program"
    printf 'exec' >"$RUN/$node/$name.run"
    printf ' %q' "$@" >>"$RUN/$node/$name.run"
}

run() {
    define "$@"
    "$HERE/proc" "$1" "$2" start
}

# make_kubeconfig TOKEN: who talks to the API server, and where it is.
make_kubeconfig() {
    cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: cluster, cluster: {server: "https://$(node_ip 1):6443", certificate-authority: $RUN/certs/ca.crt}}]
users: [{name: user, user: {token: "$1"}}]
contexts: [{name: cluster, context: {cluster: cluster, user: user}}]
current-context: cluster
YAML
}

# wait_for SECONDS WHAT COMMAND...: repeat a command until it succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || die "waited in vain for $what: $*"
        sleep 0.2
    done
}
