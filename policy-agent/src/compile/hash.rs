//! Names of chains and sets by what they mean.

use sha2::{Digest, Sha256};

/// 16 hexadecimal digits of a hash: short enough for a list of chains to be read, long
/// enough that two of a node's some thousand names never meet (64 bits).
pub(super) fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
