use super::*;

const NODE: &str = "here";

/// An endpoint of a table: its address ends in `number`.
#[derive(Clone)]
struct Row {
    number: u8,
    conditions: Conditions,
    is_local: bool,
    hints: Hints,
}

fn row(number: u8, ready: bool, serving: bool, terminating: bool) -> Row {
    Row {
        number,
        conditions: Conditions {
            ready,
            serving,
            terminating,
        },
        is_local: false,
        hints: Hints::default(),
    }
}

fn ready(number: u8) -> Row {
    row(number, true, true, false)
}

fn unready(number: u8) -> Row {
    row(number, false, false, false)
}

fn terminating(number: u8) -> Row {
    row(number, false, true, true)
}

/// Terminates and does not answer any more.
fn dying(number: u8) -> Row {
    row(number, false, false, true)
}

impl Row {
    fn here(mut self) -> Self {
        self.is_local = true;
        self
    }

    fn zones(mut self, zones: &[&str]) -> Self {
        self.hints.zones = zones.iter().map(ToString::to_string).collect();
        self
    }

    fn nodes(mut self, nodes: &[&str]) -> Self {
        self.hints.nodes = nodes.iter().map(ToString::to_string).collect();
        self
    }
}

fn target(number: u8) -> Target {
    Target {
        address: [10, 1, 2, number].into(),
        port: 80,
    }
}

fn choose(rows: &[Row], policy: TrafficPolicy, zone: Option<&str>) -> Selection {
    let candidates: Vec<_> = rows
        .iter()
        .map(|row| Candidate {
            target: target(row.number),
            is_local: row.is_local,
            conditions: row.conditions,
            hints: (row.hints != Hints::default()).then_some(&row.hints),
            node: None,
            zone: None,
            pod: None,
            slice_weight: None,
        })
        .collect();
    let node = NodeIdentity {
        name: NODE.to_owned(),
        zone: zone.map(str::to_owned),
    };
    select(&candidates, policy, &node)
}

fn chosen(by: Criterion, numbers: &[u8]) -> Selection {
    Selection::Chosen {
        by,
        targets: numbers.iter().copied().map(target).collect(),
    }
}

/// Name, endpoints, selection.
type Case<'a> = (&'a str, Vec<Row>, Selection);

fn check(cases: Vec<Case<'_>>, policy: TrafficPolicy, zone: Option<&str>) {
    for (name, rows, expected) in cases {
        assert_eq!(choose(&rows, policy, zone), expected, "{name}");
    }
}

#[test]
fn cluster_policy_takes_what_is_ready_and_else_what_still_serves() {
    use Criterion::{Ready, Terminating};
    check(
        vec![
            ("no endpoints", vec![], Selection::None),
            ("none ready", vec![unready(0), unready(1)], Selection::None),
            (
                "some ready",
                vec![unready(0), ready(1)],
                chosen(Ready, &[1]),
            ),
            (
                "location does not count",
                vec![ready(0).here(), ready(1)],
                chosen(Ready, &[0, 1]),
            ),
            (
                "all terminate and serve",
                vec![terminating(0).here(), terminating(1)],
                chosen(Terminating, &[0, 1]),
            ),
            (
                "one ready among terminating ones",
                vec![terminating(0), ready(1), terminating(2)],
                chosen(Ready, &[1]),
            ),
            (
                "terminating and no longer serving",
                vec![dying(0)],
                Selection::None,
            ),
            (
                "serving again but neither ready nor terminating",
                vec![row(0, false, true, false)],
                Selection::None,
            ),
            (
                "published though it terminates and serves no more",
                vec![row(0, true, false, true), terminating(1)],
                chosen(Ready, &[0]),
            ),
        ],
        TrafficPolicy::Cluster,
        None,
    );
}

#[test]
fn local_policy_takes_what_is_here_and_tells_nowhere_from_elsewhere() {
    use Criterion::{Local, LocalTerminating};
    check(
        vec![
            ("no endpoints", vec![], Selection::None),
            ("all remote", vec![ready(0), ready(1)], Selection::NoneLocal),
            (
                "all local",
                vec![ready(0).here(), ready(1).here()],
                chosen(Local, &[0, 1]),
            ),
            (
                "some local",
                vec![ready(0).here(), ready(1)],
                chosen(Local, &[0]),
            ),
            (
                "remote and terminating",
                vec![terminating(0), terminating(1)],
                Selection::NoneLocal,
            ),
            (
                "local ones terminate while a remote one is ready",
                vec![
                    ready(0),
                    unready(1).here(),
                    terminating(2).here(),
                    terminating(3),
                ],
                chosen(LocalTerminating, &[2]),
            ),
            (
                "a local one is ready among terminating ones",
                vec![terminating(0).here(), ready(1).here()],
                chosen(Local, &[1]),
            ),
            (
                "nothing usable anywhere",
                vec![unready(0).here(), dying(1)],
                Selection::None,
            ),
            (
                "hints do not count",
                vec![
                    ready(0).here().zones(&["zone-a"]),
                    ready(1).here().zones(&["zone-b"]),
                    ready(2).zones(&["zone-a"]),
                ],
                chosen(Local, &[0, 1]),
            ),
        ],
        TrafficPolicy::Local,
        Some("zone-a"),
    );
}

#[test]
fn zone_hints_count_if_all_have_one_and_one_is_for_this_zone() {
    use Criterion::{Ready, SameZone, Terminating};
    let zones = |number, zones: &[&str]| ready(number).zones(zones);
    check(
        vec![
            (
                "one zone of three",
                vec![
                    zones(3, &["zone-a"]),
                    zones(4, &["zone-b"]),
                    zones(5, &["zone-c"]),
                    zones(6, &["zone-a"]),
                ],
                chosen(SameZone, &[3, 6]),
            ),
            (
                "unready ones are not used",
                vec![
                    zones(3, &["zone-a"]),
                    zones(4, &["zone-b"]),
                    unready(6).zones(&["zone-a"]),
                ],
                chosen(SameZone, &[3]),
            ),
            (
                "only unready ones in the zone",
                vec![
                    unready(3).zones(&["zone-a"]),
                    zones(4, &["zone-b"]),
                    zones(5, &["zone-c"]),
                ],
                chosen(Ready, &[4, 5]),
            ),
            (
                "a ready one without a hint",
                vec![zones(3, &["zone-a"]), zones(4, &["zone-b"]), ready(5)],
                chosen(Ready, &[3, 4, 5]),
            ),
            (
                "an unready one without a hint does not matter",
                vec![zones(3, &["zone-a"]), zones(4, &["zone-b"]), unready(5)],
                chosen(SameZone, &[3]),
            ),
            (
                "none for this zone",
                vec![zones(3, &["zone-b"])],
                chosen(Ready, &[3]),
            ),
            (
                "several zones in a hint",
                vec![
                    zones(3, &["zone-a", "zone-b", "zone-c"]),
                    zones(4, &["zone-b", "zone-a"]),
                    zones(5, &["zone-b", "zone-d"]),
                ],
                chosen(SameZone, &[3, 4]),
            ),
            (
                "terminating ones are taken from every zone",
                vec![
                    terminating(3).zones(&["zone-a"]),
                    terminating(4).zones(&["zone-b"]),
                ],
                chosen(Terminating, &[3, 4]),
            ),
        ],
        TrafficPolicy::Cluster,
        Some("zone-a"),
    );
}

#[test]
fn a_node_without_zone_ignores_zone_hints() {
    for zone in [None, Some("")] {
        let rows = [ready(3).zones(&["zone-a"]), ready(4).zones(&[""])];
        assert_eq!(
            choose(&rows, TrafficPolicy::Cluster, zone),
            chosen(Criterion::Ready, &[3, 4]),
            "{zone:?}"
        );
    }
}

#[test]
fn node_hints_come_before_zone_hints() {
    use Criterion::{Ready, SameNode, SameZone};
    let hints = |number, nodes: &[&str], zones: &[&str]| ready(number).nodes(nodes).zones(zones);
    check(
        vec![
            (
                "for this node",
                vec![
                    hints(3, &[NODE], &["zone-a"]),
                    hints(4, &["there"], &["zone-a"]),
                    hints(5, &["there", NODE], &["zone-b"]),
                ],
                chosen(SameNode, &[3, 5]),
            ),
            (
                "none for this node: the zone",
                vec![
                    hints(3, &["there"], &["zone-a"]),
                    hints(4, &["there"], &["zone-b"]),
                ],
                chosen(SameZone, &[3]),
            ),
            (
                "one without a node hint: the zone",
                vec![hints(3, &[NODE], &["zone-b"]), hints(4, &[], &["zone-a"])],
                chosen(SameZone, &[4]),
            ),
            (
                "neither",
                vec![hints(3, &["there"], &["zone-b"]), hints(4, &["there"], &[])],
                chosen(Ready, &[3, 4]),
            ),
            (
                "hinted for this node, located elsewhere",
                vec![hints(3, &[NODE], &[]), hints(4, &["there"], &[]).here()],
                chosen(SameNode, &[3]),
            ),
        ],
        TrafficPolicy::Cluster,
        Some("zone-a"),
    );
}
