//! The entries of `fuzz/` on the stable toolchain: inputs that work, mutated. `make fuzz`
//! searches longer, and led by coverage; PROPTEST_CASES says how long this one does.

#[path = "../../fuzz/entries.rs"]
mod entries;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const CONFIGURATIONS: [&str; 4] = [
    include_str!("../../conf/10-trammel.conflist"),
    r#"{"cniVersion":"1.1.0","name":"net","type":"trammel","bridge":"cbr0","mode":"l2","mtu":1400,
        "ipMasq":false,"hairpinMode":true,"vlan":0,"vlanTrunk":[{"minID":2,"maxID":4}],
        "ipam":{"type":"trammel-ipam","ranges":[[{"subnet":"10.88.0.0/24","rangeStart":"10.88.0.9",
        "rangeEnd":"10.88.0.99","gateway":"10.88.0.7"}],[{"subnet":"fd88::/64"}]],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.7","mtu":1300,"table":7}],"dataDir":"/x"},
        "dns":{"nameservers":["9.9.9.9"]},"policy":"optional"}"#,
    r#"{"cniVersion":"0.4.0","name":"a.b","ipam":{"subnet":"10.1.0.0/16"},"RuntimeConfig":{
        "Mac":"0a:58:0a:58:00:09","IPs":["10.1.0.9/24"],"ipRanges":[[{"subnet":"10.2.0.0/30"}]],
        "PortMappings":[{"HostPort":80,"ContainerPort":8080,"Protocol":"TCP","HostIP":""}],
        "DNS":{"Servers":["10.96.0.10"]}},"args":{"cni":{"ips":["10.1.0.8"]}}}"#,
    r#"{"cniVersion":"1.1.0","name":"net","ipam":{"type":"host-local"},
        "cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],"prevResult":{"a":[1,{}]}}"#,
];

const RESULTS: [&str; 3] = [
    r#"{"cniVersion":"1.1.0","interfaces":[{"name":"cbr0","mac":"0a:58:0a:58:00:01","mtu":1500},
        {"name":"eth0","sandbox":"/run/netns/x","socketPath":"/s","pciID":"1"}],
        "ips":[{"address":"10.88.0.9/32","gateway":"10.88.0.1","interface":1}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1","scope":0}],"dns":{}}"#,
    r#"{"CNIVersion":"0.3.1","Interfaces":null,"IPs":[{"version":"6","address":"fd88::9/64"}],
        "routes":[{"dst":"::/0"}],"dns":{"nameservers":["::1"]},"x":[{"y":null}]}"#,
    "{}",
];

const VARIABLES: [&str; 3] = [
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u\nc1\neth0\nADD\n/run/netns/x",
    "IP=10.88.0.9;MAC=0a:58:0a:58:00:09\nABC.def-1_2\na23456789012345\nDEL\n",
    "A=B=C;;\n_x\na/b\nFOO",
];

const LEASES: [&[u8]; 3] = [
    b"c1\r\neth0\xffc2\xff10.0.0.3\xff\xfffuzz\r\neth0\xffx",
    b"\xff\0\0\0\xff10.0.0.99\xfffuzz\r\neth0\xff \r\n",
    b"fuzz\xff../../etc\r\nlo\xff10.0.0.2\n\xff\xff\xff",
];

/// What mutations insert: what the formats are made of, and what breaks careless readers.
const WORDS: [&[u8]; 18] = [
    b"null",
    b"{}",
    b"[]",
    b"\"",
    b"-1",
    b"4294967296",
    b"1e999",
    b"\"\\u0000\"",
    b"\xff",
    b"\n",
    b"::/0",
    b"0.0.0.0/33",
    b"../",
    b"=",
    b";",
    b"\"IPAM\":",
    b"fe80::1%eth0",
    b"\xf0\x9f\xa6\x80",
];

/// One change of an input.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Insert(Index, usize),
    Delete(Index, usize),
    Repeat(Index, usize),
    Truncate(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Flip(at, byte)),
        (at(), 0..WORDS.len()).prop_map(|(at, word)| Mutation::Insert(at, word)),
        (at(), 1usize..40).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (at(), 1usize..40).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        at().prop_map(Mutation::Truncate),
    ]
}

fn mutated(seeds: &'static [impl AsRef<[u8]>]) -> impl Strategy<Value = Vec<u8>> {
    (0..seeds.len(), vec(mutation(), 0..6)).prop_map(|(seed, mutations)| {
        let mut input = seeds[seed].as_ref().to_vec();
        for mutation in mutations {
            apply(&mutation, &mut input);
        }
        input
    })
}

fn apply(mutation: &Mutation, input: &mut Vec<u8>) {
    let end = input.len();
    let place = |at: &Index| at.index(end + 1);
    match mutation {
        Mutation::Flip(at, byte) => {
            if let Some(old) = input.get_mut(place(at)) {
                *old ^= byte;
            }
        }
        Mutation::Insert(at, word) => {
            let at = place(at);
            input.splice(at..at, WORDS[*word].iter().copied());
        }
        Mutation::Delete(at, length) => {
            let at = place(at);
            input.drain(at..(at + length).min(end));
        }
        Mutation::Repeat(at, length) => {
            let at = place(at);
            let part = input[at..(at + length).min(end)].to_vec();
            input.splice(at..at, part);
        }
        Mutation::Truncate(at) => input.truncate(place(at)),
    }
}

fn cases(short_run: u32) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = short_run;
    }
    config
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn configurations_are_read_or_refused_with_a_report(input in mutated(&CONFIGURATIONS)) {
        entries::conf(&input);
    }

    #[test]
    fn previous_results_pass_through_or_are_refused_with_a_report(input in mutated(&RESULTS)) {
        entries::prev_result(&input);
    }

    #[test]
    fn variables_are_read_or_refused_with_a_report(input in mutated(&VARIABLES)) {
        entries::cni_args(&input);
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_content_of_lease_files_gives_an_address_out_twice(input in mutated(&LEASES)) {
        entries::leases(&input);
    }
}
