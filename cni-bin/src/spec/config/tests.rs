use std::net::IpAddr;

use dataplane::attachment::Mode;
use serde_json::json;

use super::*;
use crate::spec::result::Route;

/// A configuration that works, with some keys replaced (`null`: removed).
fn conf(changes: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "trammel",
        "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]]},
    });
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn document(changes: &Value) -> Result<Document, Error> {
    Document::parse(conf(changes).to_string().as_bytes())
}

fn config(changes: &Value) -> Result<Config, Error> {
    document(changes)?.config(&ExtraArgs::default())
}

fn refused(changes: &Value) -> (u32, String) {
    let error = config(changes).unwrap_err();
    (error.code.number(), error.message)
}

#[test]
fn defaults() {
    let document = document(&json!({})).unwrap();
    assert_eq!(document.bridge, "cbr0");
    assert_eq!(document.data_dir, PathBuf::from("/var/lib/cni/networks"));
    assert_eq!(
        document.agent_socket,
        PathBuf::from("/run/trammel/agent.sock")
    );
    assert_eq!(document.policy, Policy::Automatic);
    let config = document.config(&ExtraArgs::default()).unwrap();
    assert_eq!(config.pool.unwrap().ranges.len(), 2);
    assert_eq!(config.port.mode, Mode::RoutedPorts);
    assert!(config.default_route.is_none() && !config.force_address);
    assert_eq!(
        (config.mtu, config.mac, config.dns),
        (None, None, Dns::default())
    );
}

#[test]
fn versions_are_matched_exactly() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let document = document(&json!({ "cniVersion": version })).unwrap();
        assert_eq!(document.version.as_str(), version);
    }
    for version in ["9.9.9", "0.2.0", "0.1.0", "1.0", "v1.0.0", "1.1.1"] {
        let error = document(&json!({ "cniVersion": version })).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion, "{version}");
        assert!(error.details[0].contains("0.4.0"), "{error:?}");
    }
    let absent = document(&json!({ "cniVersion": null })).unwrap_err();
    assert_eq!(absent.code, Code::IncompatibleVersion);
    assert!(absent.message.contains("0.1.0"), "{absent}");
}

#[test]
fn standard_input_must_be_an_object_with_a_name() {
    let code = |text: &str| Document::parse(text.as_bytes()).unwrap_err().code;
    assert_eq!(code("[]"), Code::Decode);
    assert_eq!(code("17"), Code::Decode);
    assert_eq!(code("null"), Code::InvalidConfig);
    for name in [
        json!(null),
        json!(""),
        json!("../x"),
        json!("a/b"),
        json!(7),
    ] {
        let error = document(&json!({ "name": name })).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{name}");
    }
}

#[test]
fn unsupported_keys_are_refused_with_key_and_value() {
    for (change, key, value) in [
        (json!({"promiscMode": true}), "promiscMode", "true"),
        (json!({"isGateway": false}), "isGateway", "false"),
        (json!({"vlan": 7}), "vlan", "7"),
        (json!({"vlanTrunk": [{"id": 5}]}), "vlanTrunk", "5"),
        (json!({"ipMasqBackend": "pf"}), "ipMasqBackend", "pf"),
        (json!({"mode": "l3"}), "mode", "l3"),
        (
            json!({"ipam": {"type": "dhcp"}, "mode": "routed"}),
            "mode",
            "routed",
        ),
        (json!({"enabledad": true}), "enabledad", "true"),
        (
            json!({"uplinkInterface": "eth7"}),
            "uplinkInterface",
            "eth7",
        ),
        (
            json!({"mode": "routed", "portIsolation": true}),
            "portIsolation",
            "true",
        ),
        (json!({"portIsolation": true}), "portIsolation", "true"),
    ] {
        let (code, message) = refused(&change);
        assert_eq!(code, 2, "{change}");
        assert!(
            message.contains(key) && message.contains(value),
            "{message}"
        );
    }
}

#[test]
fn default_values_of_unsupported_keys_and_unknown_keys_are_fine() {
    let change = json!({
        "ipMasq": false, "promiscMode": false, "vlan": 0, "vlanTrunk": [], "enabledad": false,
        "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": null,
        "ipMasqBackend": "nftables", "preserveDefaultVlan": true, "unheardOf": {"x": [1]},
        "runtimeConfig": {"portMappings": [], "bandwidth": null, "cgroupPath": "/x"},
    });
    config(&change).unwrap();
}

#[test]
fn contradictions_and_impossible_values_are_refused() {
    for change in [
        json!({"hairpinMode": true, "promiscMode": true}),
        json!({"mode": "routed", "ipam": {}}),
        json!({"mode": "routed-ports", "ipam": null}),
        json!({"disableContainerInterface": true}),
        json!({"ipam": {"type": "../dhcp"}}),
        json!({"vlan": -1}),
        json!({"vlan": 4095}),
        json!({"vlanTrunk": [{"minID": 9, "maxID": 3}]}),
        json!({"vlanTrunk": [{"id": 4095}]}),
        json!({"mode": "l2", "vlan": 8, "vlanTrunk": [{"id": 8}]}),
        json!({"mode": "l2", "vlan": 4094, "isGateway": true, "bridge": "abcdefghijk"}),
        json!({"mtu": 1279}),
        json!({"mtu": 65536}),
        json!({"mtu": "1500"}),
        json!({"bridge": "a/b"}),
        json!({"policy": "never"}),
        json!({"policy": "optional", "macspoofchk": true}),
        json!({"agentSocket": "agent.sock"}),
        json!({"ipam": {"dataDir": "x", "subnet": "10.0.0.0/24"}}),
        json!({"ipam": {"type": "trammel-ipam"}}),
        json!({"ipam": {"subnet": "10.0.0.0/31"}}),
        json!({"ipam": {"subnet": "10.0.0.1/24"}}),
        json!({"ipam": {"ranges": [[]]}}),
        json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/16"}], [{"subnet": "10.0.1.0/24"}]]}}),
        json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "x"}]}}),
        json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"gw": "10.0.0.1"}]}}),
        json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "gw": "10.0.0.1"}]}}),
        json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}),
        json!({"runtimeConfig": {"ips": ["10.0.0"]}}),
    ] {
        let (code, message) = refused(&change);
        assert_eq!(code, 7, "{change}: {message}");
    }
    assert_eq!(
        refused(&json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}]]}}))
            .1,
        "ipam.ranges[0][0].subnet: gateway 10.1.0.1 is not in subnet 10.0.0.0/24"
    );
}

#[test]
fn modes_have_their_own_keys() {
    let port = |change: &Value| config(change).unwrap().port;
    for (change, mode) in [
        (json!({}), Mode::RoutedPorts),
        (json!({"mode": "routed"}), Mode::Routed),
        (json!({"mode": "l2"}), Mode::L2),
        (json!({"ipam": {}}), Mode::L2),
        (json!({"ipam": null}), Mode::L2),
        (json!({"ipam": {"type": "static"}}), Mode::RoutedPorts),
    ] {
        let port = port(&change);
        assert_eq!(port.mode, mode, "{change}");
        assert!(port.hairpin && port.is_gateway && !port.isolated && !port.down);
    }
    let l2 = port(&json!({
        "mode": "l2", "isGateway": false, "hairpinMode": false, "portIsolation": true,
    }));
    assert!(!l2.hairpin && !l2.is_gateway && l2.isolated);
    assert!(port(&json!({"ipam": {}, "disableContainerInterface": true})).down);
    let gateway = json!({"mode": "l2", "isGateway": false, "isDefaultGateway": true});
    assert!(port(&gateway).is_gateway, "the one includes the other");
}

#[test]
fn vlans_have_a_gateway_on_this_node_only_if_asked_for() {
    let port = |change: &Value| config(change).unwrap().port;
    let access = port(&json!({"mode": "l2", "vlan": 100}));
    assert!(!access.is_gateway && access.vlan_gateway("cbr0").is_none());
    let gateway = port(&json!({"mode": "l2", "vlan": 100, "isGateway": true}));
    assert_eq!(gateway.vlan_gateway("cbr0").as_deref(), Some("cbr0.100"));
    let trunk = json!({"mode": "l2", "vlanTrunk": [{"id": 5}], "isDefaultGateway": true});
    assert!(
        port(&trunk).is_gateway,
        "by the bridge, whose frames have no tags"
    );
    assert!(port(&trunk).vlan_gateway("cbr0").is_none());
}

#[test]
fn who_gives_the_addresses_follows_from_the_type() {
    let of = |ipam: Value| document(&json!({ "ipam": ipam })).unwrap().ipam;
    assert_eq!(of(json!({"subnet": "10.0.0.0/24"})), Ipam::InProcess);
    assert_eq!(of(json!({"type": "trammel-ipam"})), Ipam::InProcess);
    assert_eq!(of(json!({})), Ipam::Nobody);
    let plugin = of(json!({"type": "static", "dataDir": "not ours to judge"}));
    assert_eq!(plugin, Ipam::Plugin("static".into()));
}

#[test]
fn a_small_mtu_is_fine_without_ipv6() {
    let change = json!({"mtu": 576, "ipam": {"subnet": "10.0.0.0/24"}});
    assert_eq!(config(&change).unwrap().mtu, Some(576));
}

#[test]
fn ranges_of_the_runtime_come_first_and_old_style_before_new() {
    let change = json!({
        "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]},
    });
    let sets: Vec<_> = config(&change)
        .unwrap()
        .pool
        .unwrap()
        .ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        sets,
        [
            "10.3.0.1-10.3.0.254 of 10.3.0.0/24",
            "10.1.0.9-10.1.0.254 of 10.1.0.0/24",
            "10.2.0.1-10.2.0.254 of 10.2.0.0/24",
        ]
    );
}

/// The payload of containerd, whose structures have no JSON tags.
#[test]
fn capitalised_capabilities_are_read() {
    let change = json!({
        "RuntimeConfig": {
            "Mac": "0A:58:0a:58:00:09",
            "IPs": ["10.88.0.9/24", "fd88::9"],
            "DNS": {"Servers": ["10.96.0.10"], "Searches": ["svc.cluster.local"], "Options": ["ndots:5"]},
        },
        "dns": {"nameservers": ["9.9.9.9"]},
    });
    let config = config(&change).unwrap();
    assert_eq!(config.mac, Some(MacAddr([0x0a, 0x58, 0x0a, 0x58, 0, 9])));
    let expected: [IpAddr; 2] = ["10.88.0.9".parse().unwrap(), "fd88::9".parse().unwrap()];
    assert_eq!(config.pool.unwrap().requested, expected);
    assert_eq!(config.dns.nameservers, ["10.96.0.10"]);
    assert_eq!(config.dns.search, ["svc.cluster.local"]);
}

#[test]
fn a_mac_of_the_runtime_precedes_args_which_precede_cni_args() {
    let mac = |last: u8| format!("0a:58:00:00:00:{last:02x}");
    let args = ExtraArgs {
        mac: mac(3).parse().ok(),
        ip: Some("10.88.0.3".parse().unwrap()),
        pod: None,
    };
    let of = |change: &Value| document(change).unwrap().config(&args).unwrap();
    let both = of(&json!({
        "runtimeConfig": {"mac": mac(1), "ips": ["10.88.0.1"]},
        "args": {"cni": {"mac": mac(2), "ips": ["10.88.0.2"]}},
    }));
    assert_eq!(both.mac.unwrap().0[5], 1);
    assert_eq!(both.pool.unwrap().requested.len(), 3);
    assert_eq!(
        of(&json!({"args": {"cni": {"mac": mac(2)}}}))
            .mac
            .unwrap()
            .0[5],
        2
    );
    assert_eq!(of(&json!({})).mac.unwrap().0[5], 3);
}

#[test]
fn route_attributes_are_kept() {
    let change = json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [
        {"dst": "10.9.8.7/16", "gw": "10.0.0.1", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 99, "scope": 0},
    ]}});
    let routes = config(&change).unwrap().pool.unwrap().routes;
    let expected = Route {
        dst: "10.9.0.0/16".parse().unwrap(),
        gw: Some("10.0.0.1".parse().unwrap()),
        mtu: Some(1400),
        advmss: Some(1300),
        priority: Some(7),
        table: Some(99),
        scope: Some(0),
    };
    assert_eq!(routes, [expected]);
}

#[test]
fn gc_needs_its_list_and_prefers_the_current_key() {
    let list = |ids: &[&str]| -> Value {
        ids.iter()
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect()
    };
    let ids = |change: &Value| {
        let valid = document(change).unwrap().valid_attachments().unwrap();
        valid
            .into_iter()
            .map(|valid| valid.container_id)
            .collect::<Vec<_>>()
    };
    let (new, old) = ("cni.dev/valid-attachments", "cni.dev/attachments");
    assert_eq!(
        ids(&json!({ new: list(&["a", "b"]), old: list(&["c"]) })),
        ["a", "b"]
    );
    assert_eq!(ids(&json!({ old: list(&["c"]) })), ["c"]);
    assert_eq!(ids(&json!({ new: [] })), Vec::<String>::new());
    for bad in [
        json!({}),
        json!({ new: null }),
        json!({ new: [{"ifname": "eth0"}] }),
    ] {
        let error = document(&bad).unwrap().valid_attachments().unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{bad}");
    }
}

#[test]
fn a_broken_rest_does_not_keep_a_document_from_being_read() {
    let change = json!({"mtu": "x", "ipMasq": 3, "ipam": {"ranges": 7}, "prevResult": [1]});
    let document = document(&change).unwrap();
    assert_eq!(document.prev_result(), Some(&json!([1])));
    assert!(document.config(&ExtraArgs::default()).is_err());
}

/// The example that the project ships, as a runtime would hand it over.
#[test]
fn the_shipped_conflist_is_a_valid_configuration() {
    let list: Value = parse(include_bytes!("../../../../conf/10-trammel.conflist")).unwrap();
    let plugins = list["plugins"].as_array().unwrap();
    assert_eq!(plugins[0]["type"], "trammel");
    // A runtime chooses the newest that it knows, an old one takes the first.
    assert_eq!(list["cniVersions"][0], list["cniVersion"]);
    for version in list["cniVersions"].as_array().unwrap() {
        let mut conf = plugins[0].clone();
        conf["cniVersion"] = version.clone();
        conf["name"] = list["name"].clone();
        let document = Document::from_value(conf).unwrap();
        assert_eq!(document.version.to_string(), version.as_str().unwrap());
        let config = document.config(&ExtraArgs::default()).unwrap();
        assert_eq!(config.pool.unwrap().ranges.len(), 2);
    }
}
