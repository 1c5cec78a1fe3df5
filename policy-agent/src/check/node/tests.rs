use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::check::Severity;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

/// The settings of a healthy node, changed.
fn settings(changes: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let healthy = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/eth0/accept_ra", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/netfilter/nf_conntrack_max", "262144"),
    ];
    for (name, value) in healthy.iter().chain(changes) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, format!("{value}\n")).expect("written");
    }
    folder
}

fn links(uplinks: &[&str], advertised: &[&str], addressed: &[&str]) -> Links {
    Links {
        mtus: BTreeMap::from([("eth0".to_owned(), 1500), ("cbr0".to_owned(), 1500)]),
        uplinks: names(uplinks),
        advertised: names(advertised),
        addressed: names(addressed),
    }
}

const BOTH: Families = Families { v4: true, v6: true };
const V4: Families = Families {
    v4: true,
    v6: false,
};

/// Findings that are not fine, by severity and code.
fn judged(
    folder: &tempfile::TempDir,
    links: &Links,
    families: Families,
) -> Vec<(Severity, String)> {
    let findings = sysctls(folder.path(), links, &Config::default(), families);
    let wrong = findings.into_iter().filter(|f| f.severity != Severity::Ok);
    wrong.map(|f| (f.severity, f.code)).collect()
}

#[test]
fn sysctls_that_break_pods_are_found() {
    let usual = links(&["eth0"], &[], &["eth0", "cbr0"]);
    let advertised = links(&["eth0"], &["eth0"], &["eth0"]);
    let two = links(&["eth0"], &[], &["eth0", "eth1", "cbr0"]);
    let error = |code: &str| vec![(Severity::Error, code.to_owned())];
    let warning = |code: &str| vec![(Severity::Warning, code.to_owned())];
    for (changes, links, families, expected) in [
        (&[][..], &usual, BOTH, vec![]),
        (
            &[("net/ipv4/ip_forward", "0")],
            &usual,
            V4,
            error("ip-forward"),
        ),
        (
            &[("net/ipv6/conf/all/forwarding", "0")],
            &usual,
            BOTH,
            error("ipv6-forward"),
        ),
        (&[("net/ipv6/conf/all/forwarding", "0")], &usual, V4, vec![]),
        (
            &[("net/ipv6/conf/all/forwarding", "0")],
            &usual,
            Families::default(),
            warning("ipv6-forward"),
        ),
        (
            &[("net/ipv6/conf/eth0/accept_ra", "1")],
            &advertised,
            BOTH,
            error("accept-ra"),
        ),
        (
            &[("net/ipv6/conf/eth0/accept_ra", "2")],
            &advertised,
            BOTH,
            vec![],
        ),
        (
            &[("net/ipv6/conf/eth0/accept_ra", "1")],
            &usual,
            BOTH,
            vec![],
        ),
        (&[("net/ipv4/conf/all/rp_filter", "1")], &usual, V4, vec![]),
        (
            &[("net/ipv4/conf/all/rp_filter", "1")],
            &two,
            V4,
            warning("rp-filter"),
        ),
        (
            &[
                ("net/ipv4/conf/all/rp_filter", "1"),
                ("net/ipv4/conf/eth0/rp_filter", "2"),
                ("net/ipv4/conf/eth1/rp_filter", "2"),
            ],
            &two,
            V4,
            vec![],
        ),
        (
            &[("net/netfilter/nf_conntrack_max", "65536")],
            &usual,
            V4,
            warning("conntrack-limit"),
        ),
    ] {
        let found = judged(&settings(changes), links, families);
        assert_eq!(found, expected, "{changes:?}");
    }
}

#[test]
fn mtus_of_bridge_and_uplink_are_compared() {
    let bridges = ["cbr0".to_owned()];
    let mut node = links(&["eth0"], &[], &["eth0"]);
    let codes = |node: &Links, families| -> Vec<_> {
        let found = mtus(node, &bridges, families);
        found.into_iter().map(|f| (f.severity, f.code)).collect()
    };
    let mtu = |severity| vec![(severity, "mtu".to_owned())];
    assert_eq!(codes(&node, BOTH), mtu(Severity::Ok));
    node.mtus.insert("eth0".to_owned(), 1400);
    assert_eq!(codes(&node, BOTH), mtu(Severity::Warning));
    node.mtus.insert("cbr0".to_owned(), 1200);
    node.mtus.insert("eth0".to_owned(), 1200);
    assert_eq!(codes(&node, BOTH), mtu(Severity::Error));
    assert_eq!(codes(&node, V4), mtu(Severity::Ok));
    node.uplinks.clear();
    let without = codes(&node, V4);
    assert_eq!(without, [(Severity::Warning, "default-route".to_owned())]);
}
