use serde_json::json;

use super::*;

/// A result of host-local 1.1 (0.4.0: with `version`) and one of 1.1.0.
#[test]
fn results_of_all_layouts_are_read() {
    let answer = Answer::of(&json!({
        "cniVersion": "0.4.0",
        "ips": [{"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    }));
    let answer = answer.unwrap();
    let gateway = Some("10.1.0.1".parse().unwrap());
    assert_eq!(
        answer.addresses,
        [("10.1.0.5/24".parse().unwrap(), gateway)]
    );
    assert_eq!((answer.routes.len(), answer.routes[0].gw), (1, None));
    let answer = Answer::of(&json!({
        "ips": [{"address": "fd00::5/64"}],
        "routes": [{"dst": "fd01::/64", "mtu": 1400, "table": 7}],
        "dns": {"nameservers": ["fd00::53"]},
    }));
    let answer = answer.unwrap();
    assert_eq!(answer.addresses, [("fd00::5/64".parse().unwrap(), None)]);
    assert_eq!(
        (answer.routes[0].mtu, answer.routes[0].table),
        (Some(1400), Some(7))
    );
    assert_eq!(answer.dns.nameservers, ["fd00::53"]);
}

#[test]
fn results_without_usable_addresses_are_refused_with_the_place() {
    for (result, place) in [
        (json!({}), "ips"),
        (json!({"ips": [{"address": "10.1.0.5"}]}), "ips[0].address"),
        (
            json!({"ips": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]}),
            "ips[0].gateway",
        ),
        (
            json!({"ips": [{"address": "10.1.0.5/24"}], "routes": [{}]}),
            "routes[0].dst",
        ),
        (json!([]), "result"),
    ] {
        let error = Answer::of(&result).unwrap_err();
        assert!(error.message.contains(place), "{error}");
    }
}
