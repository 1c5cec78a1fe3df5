# How Trammel comes onto the nodes. Sourced by `up`, after the kubelets.
# shellcheck shell=bash

install_programs() {
    local program
    cp "$LOOPBACK" "$RUN/$1/opt-cni/bin/"
    for program in trammel trammel-ipam; do
        cp "$PROGRAMS/$program" "$RUN/$1/opt-cni/bin/.$program"
        mv "$RUN/$1/opt-cni/bin/.$program" "$RUN/$1/opt-cni/bin/$program"
    done
}

# The agent has no more rights than the manifests give it.
make_agent_kubeconfig() {
    kubectl apply -f "$HERE/manifests/agent-rbac.yaml" >/dev/null
    make_kubeconfig "$(kubectl -n kube-system create token trammel-agent --duration=24h)" >"$RUN/agent.kubeconfig"
}

# start_agent NODE: from a copy, as an upgrade replaces it by rename.
start_agent() {
    mkdir -p "$RUN/$1/bin"
    cp "$PROGRAMS/trammel-agent" "$RUN/$1/bin/trammel-agent"
    run "$1" agent "$RUN/$1/bin/trammel-agent" run --node-name "$1" --kubeconfig "$RUN/agent.kubeconfig" \
        --listen 0.0.0.0:9870 --healthz-bind-address 0.0.0.0:10256 --metrics-bind-address 127.0.0.1:10249 \
        --cluster-cidr "$POD_CIDRS" --conntrack-max-per-core 0
}

# Static routes and a conflist of the node's ranges.
configure_network() {
    local node=$1 other cidr4 cidr6
    for other in $(node_names); do
        read -r cidr4 cidr6 <<<"$(kubectl get node "$other" -o 'jsonpath={.spec.podCIDRs[*]}')"
        if [[ $other != "$node" ]]; then
            ip -n "$PREFIX$node" route replace "$cidr4" via "$(node_ip "$other")"
            ip -n "$PREFIX$node" route replace "$cidr6" via "$(node_ip6 "$other")"
            continue
        fi
        cat >"$RUN/$node/etc-cni/net.d/.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "trammel", "plugins": [{
  "type": "trammel", "policy": "required",
  "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "dns": true},
  "ipam": {"type": "trammel-ipam", "ranges": [[{"subnet": "$cidr4"}], [{"subnet": "$cidr6"}]]}
}]}
JSON
        mv "$RUN/$node/etc-cni/net.d/.conflist" "$RUN/$node/etc-cni/net.d/10-trammel.conflist"
    done
}

(cd "$PROGRAMS" && sha256sum trammel trammel-ipam trammel-agent) >"$RUN/programs.sha256"
make_agent_kubeconfig
for node in $(node_names); do
    install_programs "$node"
    start_agent "$node"
    configure_network "$node"
done
