//! The entries of `fuzz/` on the stable toolchain: inputs that work, mutated. `make fuzz`
//! searches longer, and led by coverage; PROPTEST_CASES says how long this one does.

#[path = "../../fuzz/entries.rs"]
mod entries;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const CONFIGURATIONS: [&[u8]; 4] = [
    include_bytes!("../../conf/10-trammel.conflist"),
    include_bytes!("../../fuzz/seeds/conf/l2"),
    include_bytes!("../../fuzz/seeds/conf/containerd"),
    include_bytes!("../../fuzz/seeds/conf/gc"),
];

const RESULTS: [&[u8]; 2] = [
    include_bytes!("../../fuzz/seeds/prev_result/current"),
    include_bytes!("../../fuzz/seeds/prev_result/legacy"),
];

const VARIABLES: [&[u8]; 3] = [
    include_bytes!("../../fuzz/seeds/cni_args/kubernetes"),
    include_bytes!("../../fuzz/seeds/cni_args/addresses"),
    include_bytes!("../../fuzz/seeds/cni_args/wrong"),
];

const LEASES: [&[u8]; 3] = [
    include_bytes!("../../fuzz/seeds/leases/held"),
    include_bytes!("../../fuzz/seeds/leases/torn"),
    include_bytes!("../../fuzz/seeds/leases/foreign"),
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

fn mutated(seeds: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    (0..seeds.len(), vec(mutation(), 0..6)).prop_map(|(seed, mutations)| {
        let mut input = seeds[seed].to_vec();
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
