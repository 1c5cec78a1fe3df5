use proptest::prelude::*;
use rscni_types::types as theirs;
use rscni_types::version::SpecVersion;

use super::*;

fn addition() -> Addition {
    let interface = |name: &str, sandbox: Option<&str>| Interface {
        name: name.into(),
        mac: "0a:58:0a:58:00:02".into(),
        mtu: Some(1450),
        sandbox: sandbox.map(str::to_owned),
    };
    let ip = |address: &str, gateway: &str| Ip {
        address: address.parse().unwrap(),
        gateway: gateway.parse().ok(),
        interface: Some(2),
    };
    let route = |dst: &str, gw: &str| Route {
        dst: dst.parse().unwrap(),
        gw: gw.parse().ok(),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    };
    Addition {
        interfaces: vec![
            interface("cbr0", None),
            interface("trm0", None),
            interface("eth0", Some("/run/netns/x")),
        ],
        ips: vec![
            ip("10.88.0.2/32", "10.88.0.1"),
            ip("fd88::2/128", "fd88::1"),
        ],
        routes: vec![route("0.0.0.0/0", "10.88.0.1"), route("::/0", "fd88::1")],
        dns: Dns::default(),
    }
}

#[test]
fn a_result_of_1_1_0() {
    let result = addition().render(Version::V1_1_0, None).unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cbr0", "mac": "0a:58:0a:58:00:02", "mtu": 1450},
                {"name": "trm0", "mac": "0a:58:0a:58:00:02", "mtu": 1450},
                {"name": "eth0", "mac": "0a:58:0a:58:00:02", "mtu": 1450, "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.88.0.2/32", "gateway": "10.88.0.1", "interface": 2},
                {"address": "fd88::2/128", "gateway": "fd88::1", "interface": 2},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.88.0.1"},
                {"dst": "::/0", "gw": "fd88::1"},
            ],
        })
    );
}

#[test]
fn a_result_of_0_4_0_has_families_and_dns_and_no_mtu() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
        let result = addition().render(version, None).unwrap();
        assert_eq!(result["ips"][0]["version"], "4");
        assert_eq!(result["ips"][1]["version"], "6");
        assert_eq!(result["dns"], json!({}));
        assert!(result["interfaces"][2].get("mtu").is_none());
    }
}

#[test]
fn the_legacy_layout_agrees_with_rscni_types() {
    let new = addition().render(Version::V1_1_0, None).unwrap();
    let parsed: theirs::CNIResult = serde_json::from_value(new).unwrap();
    let version: SpecVersion = serde_json::from_value(json!("0.4.0")).unwrap();
    let legacy = rscni_types::legacy::CNIResult::new(version, parsed);
    let ours = addition().render(Version::V0_4_0, None).unwrap();
    assert_eq!(ours, serde_json::to_value(legacy).unwrap());
}

#[test]
fn a_previous_result_passes_through_with_what_we_do_not_know() {
    let prev = json!({
        "CNIVersion": "1.1.0",
        "interfaces": [{"name": "dummy0", "sandbox": "/run/netns/x", "socketPath": "/s", "x": {"y": 1}}],
        "ips": [{"address": "192.0.2.1/32", "interface": 0, "unknown": true}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "extra": [1, {"two": null}],
    });
    let result = addition().render(Version::V1_1_0, Some(&prev)).unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert!(result.get("CNIVersion").is_none());
    assert_eq!(result["interfaces"][0], prev["interfaces"][0]);
    assert_eq!(result["ips"][0], prev["ips"][0]);
    assert_eq!(result["extra"], prev["extra"]);
    assert_eq!(result["dns"], prev["dns"]);
    assert_eq!(result["ips"][1]["interface"], 3);
    assert_eq!(result["interfaces"][3]["name"], "eth0");
    for bad in [json!([]), json!({"ips": "bad"})] {
        let error = addition().render(Version::V1_1_0, Some(&bad)).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
    }
}

#[test]
fn expectations_are_those_of_the_interface_in_the_container() {
    let prev = json!({
        "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}, {"name": "net1", "sandbox": "/x"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"version": "4", "address": "10.0.0.2/32", "interface": 1},
            {"address": "10.0.0.3/32", "interface": 2},
            {"address": "10.0.0.4/32"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    });
    let expected = Expected::of(&prev, "eth0").unwrap();
    assert_eq!(expected.addresses, ["10.0.0.2/32".parse().unwrap()]);
    assert_eq!(expected.routes.len(), 1);
    assert!(Expected::of(&json!({"ips": 3}), "eth0").is_err());
}

#[test]
fn a_resolv_conf_is_read() {
    let dns = Dns::from_resolv_conf(
        "# comment\nnameserver 10.0.0.1\nnameserver ::1\ndomain a.b\nsearch x\nsearch y z\noptions ndots:5 rotate\nweird\n",
    );
    assert_eq!(
        dns.to_json(),
        json!({"nameservers": ["10.0.0.1", "::1"], "domain": "a.b", "search": ["y", "z"], "options": ["ndots:5", "rotate"]})
    );
}

fn any_version() -> impl Strategy<Value = Version> {
    proptest::sample::select(Version::ALL.to_vec())
}

proptest! {
    /// Down and up again loses nothing but what the older layout cannot hold.
    #[test]
    fn conversion_is_stable(
        octets in any::<u32>(),
        segments in any::<u128>(),
        mtu in proptest::option::of(68u32..65536),
        via in any_version(),
        to in any_version(),
    ) {
        let mut addition = addition();
        let v4 = std::net::Ipv4Addr::from_bits(octets);
        let v6 = std::net::Ipv6Addr::from_bits(segments);
        addition.ips[0].address = IpNet::new(v4.into(), 32).unwrap();
        addition.ips[1].address = IpNet::new(v6.into(), 128).unwrap();
        for interface in &mut addition.interfaces {
            interface.mtu = mtu;
        }
        let direct = addition.render(to, None).unwrap();
        let through = convert(addition.render(via, None).unwrap(), to);
        if via >= Version::V1_0_0 || to < Version::V1_0_0 {
            prop_assert_eq!(&through, &direct);
        }
        prop_assert_eq!(convert(direct.clone(), to), direct);
        prop_assert_eq!(&through["cniVersion"], to.as_str());
    }
}
