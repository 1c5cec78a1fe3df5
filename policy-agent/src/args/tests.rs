use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Command, String> {
    let words = std::iter::once("trammel-agent").chain(line.split_whitespace());
    let parsed = Arguments::try_parse_from(words);
    parsed
        .map(|arguments| arguments.command)
        .map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn run_takes_one_source_and_has_defaults() {
    let Ok(Command::Run(run)) = parse("run --node-name n1 --manifests /m") else {
        panic!("a valid line");
    };
    assert_eq!(run.socket, PathBuf::from(DEFAULT_SOCKET));
    assert_eq!((run.listen, run.kubeconfig, run.config), (None, None, None));
    assert_eq!(run.manifests, Some("/m".into()));
    let error = parse("run --node-name n1 --manifests /m --kubeconfig /k").expect_err("both");
    assert!(error.contains("--kubeconfig"), "{error}");
    let error = parse("run --node-name n1 --listen 9870").expect_err("no address");
    assert!(error.contains("--listen"), "{error}");
}

#[test]
fn every_verb_takes_a_socket_and_a_form_of_output() {
    for verb in [
        "status", "services", "policies", "verify", "cleanup", "wait",
    ] {
        let command = parse(&format!("{verb} --socket /s -o json"));
        let client = match command {
            Ok(
                Command::Status(client)
                | Command::Services(client)
                | Command::Policies(client)
                | Command::Verify(client)
                | Command::Cleanup(Cleanup { client, .. })
                | Command::Wait { client, .. },
            ) => client,
            other => panic!("{verb}: {other:?}"),
        };
        assert_eq!(client.socket, PathBuf::from("/s"), "{verb}");
        assert_eq!(client.output, Output::Json, "{verb}");
    }
}

#[test]
fn a_wait_takes_ten_seconds_where_nothing_is_said() {
    let Ok(Command::Wait { timeout, .. }) = parse("wait") else {
        panic!("a valid line");
    };
    assert_eq!(timeout, Duration::from_secs(10));
}

#[test]
fn a_flag_of_services_counts_over_the_file() {
    let line = "run --node-name n1 --cluster-cidr 10.244.0.0/16,fd00::/48 \
                --nodeport-addresses all,localhost --masquerade-all --reset-gone-endpoints --min-sync-period 1s \
                --conntrack-tcp-be-liberal=false --healthz-bind-address 0.0.0.0:10256 \
                --detect-local-mode BridgeInterface --pod-bridge-interface cni0";
    let Ok(Command::Run(run)) = parse(line) else {
        panic!("a valid line");
    };
    let mut file = crate::config::services::ServiceConfig::default();
    file.conntrack.tcp_be_liberal = true;
    file.conntrack.min = 7;
    file.sync_period = Duration::from_secs(5);
    let config = run.services.over(file);
    assert_eq!(config.cluster_cidrs.len(), 2);
    assert_eq!(config.detect_local_mode.to_string(), "BridgeInterface");
    assert_eq!(config.detect_local.bridge_interface, "cni0");
    assert_eq!(config.missing(), None);
    assert_eq!(config.node_port_addresses.len(), 2);
    assert!(config.masquerade_all && !config.conntrack.tcp_be_liberal);
    assert!(config.reset_gone_endpoints);
    assert_eq!(config.conntrack.min, 7, "as in the file");
    assert_eq!(config.sync_period, Duration::from_secs(5), "as in the file");
    assert!(config.healthz_bind_address.is_some() && config.metrics_bind_address.is_none());
    let error = parse("run --node-name n1 --pod-interface-name-prefix veth+").expect_err("no name");
    assert!(error.contains("write \"veth\""), "{error}");
    let error = parse("run --node-name n1 --nodeport-addresses eth0").expect_err("no address");
    assert!(
        error.contains("--nodeport-addresses") && error.contains("primary"),
        "{error}"
    );
}
