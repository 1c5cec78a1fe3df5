//! Indices that are known before their links exist.
//!
//! Routes, neighbours, addresses and queues name their link by its index, which the kernel
//! chooses when it makes the link. Whoever wants all of them in one send chooses it himself.
//!
//! Messages of a batch are carried out also after the one that makes the link has failed. So
//! the index must be nobody else's, not even in the next moment: it is in the upper half of
//! the numbers, where the kernel's own count, which starts with 1 and goes on with every link,
//! does not come, and there it follows from the link's unique name.

use crate::netlink::Socket;

/// The first of the indices that are chosen.
const FIRST: u32 = 1 << 30;
/// How many pairs there are.
const PAIRS: u32 = 1 << 29;

/// An index that is free in the host's namespace, as is the next one: for the host's end of a
/// pod's link, by its name, and for the device beside it.
pub fn chosen_index(host: &Socket, name: &str) -> u32 {
    choose(name, |index| host.is_free(index))
}

fn choose(name: &str, is_free: impl Fn(u32) -> bool) -> u32 {
    let start = pair_of(name);
    let pairs = (start..PAIRS).chain(0..start);
    let mut indices = pairs.map(|pair| FIRST + 2 * pair);
    let free = indices.find(|index| is_free(*index) && is_free(index + 1));
    free.unwrap_or(FIRST + 2 * start)
}

/// From the digits that the name ends with.
fn pair_of(name: &str) -> u32 {
    let digits = name.get(name.len().saturating_sub(8)..).unwrap_or_default();
    u32::from_str_radix(digits, 16).unwrap_or_default() % PAIRS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_follows_from_the_name_and_lies_beyond_those_that_the_kernel_gives() {
        assert_eq!(pair_of("trm0123456789ab"), 0x0567_89ab);
        assert_eq!(pair_of("x"), 0);
        let last = choose("trm0123ffffffff", |_| true);
        assert_eq!(last, FIRST + 2 * (PAIRS - 1));
        assert!(i32::try_from(last + 1).is_ok(), "indices are signed");
        assert_eq!(choose("trm0123fffffffe", |_| true), last - 2);
    }

    #[test]
    fn an_index_that_is_taken_or_whose_next_one_is_is_left_alone() {
        let last = FIRST + 2 * (PAIRS - 1);
        for taken in [last, last + 1] {
            let chosen = choose("trm0123ffffffff", |index| index != taken);
            assert_eq!(chosen, FIRST);
        }
        let few = choose("trm012300000000", |index| index >= FIRST + 5);
        assert_eq!(few, FIRST + 6);
    }
}
