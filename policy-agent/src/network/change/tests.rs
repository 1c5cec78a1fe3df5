use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

const MAC: MacAddr = MacAddr([10, 1, 1, 1, 1, 1]);
const OTHER_MAC: MacAddr = MacAddr([10, 2, 2, 2, 2, 2]);

fn via(gateway: &str, link: u32) -> Target {
    Target::Via {
        gateway: ip(gateway),
        link,
        source: None,
    }
}

fn route(destination: &str, target: Target) -> (RouteKey, Target) {
    let destination = net(destination);
    let metric = default_metric(destination);
    (
        RouteKey {
            destination,
            metric,
        },
        target,
    )
}

/// One node behind tunnel 9.
fn tunnelled() -> State {
    State {
        addresses: [(9, ip("10.88.1.1"))].into(),
        neighbours: [((9, ip("10.88.2.1")), MAC)].into(),
        remotes: [((9, MAC), ip("192.0.2.2"))].into(),
        routes: [route("10.88.2.0/24", via("10.88.2.1", 9))].into(),
    }
}

/// What the kernel would make of the steps.
fn applied(mut state: State, changes: &[Change]) -> State {
    for change in changes {
        match *change {
            Change::Address(Step::Remove, link, ip) => {
                assert!(state.addresses.remove(&(link, ip)));
            }
            Change::Address(_, link, ip) => assert!(state.addresses.insert((link, ip))),
            Change::Neighbour(step, link, ip, mac) => {
                put(&mut state.neighbours, (link, ip), mac, step);
            }
            Change::Remote(step, link, mac, ip) => put(&mut state.remotes, (link, mac), ip, step),
            Change::Route(step, key, target) => put(&mut state.routes, key, target, step),
        }
    }
    state
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, step: Step) {
    let old = match step {
        Step::Remove => map.remove(&key),
        Step::Add | Step::Replace => map.insert(key, value),
    };
    assert_eq!(old.is_some(), step != Step::Add, "{step}");
}

#[test]
fn the_steps_lead_from_any_state_to_the_wanted_one() {
    let mut moved = tunnelled();
    moved.routes = [route("10.88.2.0/24", via("192.0.2.2", 7))].into();
    let mut renamed = tunnelled();
    renamed.neighbours = [((9, ip("10.88.2.1")), OTHER_MAC)].into();
    renamed.remotes = [((9, OTHER_MAC), ip("192.0.2.2"))].into();
    let mut moved_node = tunnelled();
    moved_node.remotes = [((9, MAC), ip("192.0.2.77"))].into();
    let mut odd = tunnelled();
    odd.routes = [
        route("10.88.2.0/24", Target::Other),
        route("fd88:2::/64", Target::Unreachable),
    ]
    .into();
    let states = [
        State::default(),
        tunnelled(),
        moved,
        renamed,
        moved_node,
        odd,
    ];
    for wanted in &states {
        for observed in &states {
            let steps = changes(wanted, observed, &BTreeSet::new());
            assert_eq!(&applied(observed.clone(), &steps), wanted, "{steps:?}");
            assert_eq!(steps.is_empty(), wanted == observed);
        }
    }
}

#[test]
fn no_route_leads_into_a_tunnel_that_does_not_know_the_way() {
    let position = |steps: &[Change], is_it: fn(&Change) -> bool| {
        steps.iter().position(is_it).expect("among the steps")
    };
    let is_route = |change: &Change| matches!(change, Change::Route(..));
    let is_remote = |change: &Change| matches!(change, Change::Remote(..));
    let is_neighbour = |change: &Change| matches!(change, Change::Neighbour(..));
    let is_address = |change: &Change| matches!(change, Change::Address(..));
    let none = BTreeSet::new();
    let steps = changes(&tunnelled(), &State::default(), &none);
    let route = position(&steps, is_route);
    assert!(position(&steps, is_remote) < route && position(&steps, is_neighbour) < route);
    // A preferred source has to be there before the route.
    assert!(position(&steps, is_address) < route);
    let steps = changes(&State::default(), &tunnelled(), &none);
    let route = position(&steps, is_route);
    assert!(route < position(&steps, is_remote) && route < position(&steps, is_neighbour));
}

#[test]
fn what_is_undecided_stays_and_tunnels_forget_nothing_meanwhile() {
    let undecided = BTreeSet::from([net("10.88.2.0/24")]);
    let mut observed = tunnelled();
    let gone = route("10.88.7.0/24", via("192.0.2.7", 7));
    observed.routes.extend([gone]);
    let wanted = State {
        addresses: observed.addresses.clone(),
        ..State::default()
    };
    let steps = changes(&wanted, &observed, &undecided);
    assert_eq!(steps, [Change::Route(Step::Remove, gone.0, gone.1)]);
}
