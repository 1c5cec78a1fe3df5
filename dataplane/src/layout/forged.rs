//! What becomes of packets whose sender is not who it says: counted, told to whoever listens,
//! and dropped, see [`super::ports`].
//!
//! Each port has a rate limit of its own, by its element of a dynamic set: a pod that floods
//! does not hide what another does. The same chain is in both tables, because a bridge's ports
//! are seen in the bridge family only. `CONFIG_NF_LOG_ARP` is not needed: ARP on a bridge is
//! handed over by the bridge family.

use std::sync::LazyLock;

use crate::datatype::{DataType, Type};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::denials::{Denials, log};
use crate::layout::{BRIDGE, INET};
use crate::object::{Chain, Dynamic, Name, SetSpec, TableId};
use crate::rule::{Rule, Statement};

/// The chain, and the prefix of its messages.
pub(super) const FORGED: &str = "forged";
/// Ports that have forged of late, with what is left of their limit.
static FORGERS: LazyLock<Name> = LazyLock::new(|| "forgers".into());

/// Messages a second of one port, after a burst.
const RATE: u64 = 10;
const BURST: u32 = 50;
/// A limit is full again after its burst, so a port that was quiet for longer is like new.
const REMEMBERED: Dynamic = Dynamic {
    timeout_ms: 10_000,
    size: 4_096,
};

/// Wants the chain in both tables.
pub(super) fn set(desired: &mut Desired, denials: Denials) {
    for table in [&*INET, &*BRIDGE] {
        set_in(desired, table, denials);
    }
}

pub(super) fn set_in(desired: &mut Desired, table: &TableId, denials: Denials) {
    let mut rules = Vec::new();
    if denials.log {
        let spec = SetSpec {
            dynamic: Some(REMEMBERED),
            ..SetSpec::set(Type::of(&[DataType::Ifname]), "ports that forge")
        };
        desired.set(table, &FORGERS, spec);
        let limit = Statement::LimitEach {
            set: FORGERS.clone(),
            key: vec![Field::Iifname],
            rate: RATE,
            burst: BURST,
        };
        rules.push(Rule::new().with(limit).with(log(FORGED)));
    } else {
        desired.remove_set(table, &FORGERS);
    }
    rules.push(Rule::new().counter().drop());
    let comment = "the sender is not who it says";
    desired.chain(table, &FORGED.into(), Chain::regular(comment, rules));
}
