//! Chains of others: only their names and where they are hooked in.

use crate::kernel::KernelError;
use crate::netlink::attr::Attrs;
use crate::netlink::socket::{Nftables, message_type};
use crate::netlink::uapi::{chain, hook, msg};
use crate::object::{Family, Hook, TableId};

/// `NF_DROP`.
const DROP: u32 = 0;

/// A chain of any table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignChain {
    /// Its table.
    pub table: TableId,
    /// Name.
    pub name: String,
    /// Where it is hooked in; `None` for a regular chain.
    pub hook: Option<Hook>,
    /// What it does not decide is dropped.
    pub drops: bool,
}

impl Nftables {
    /// The chains of all tables for IP in the network namespace, ours among them.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn chains(&mut self) -> Result<Vec<ForeignChain>, KernelError> {
        let mut chains = Vec::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            loop {
                let mut found = Vec::new();
                let mut each = |attrs: Attrs<'_>| found.extend(read(family, attrs));
                let ty = message_type(msg::GETCHAIN);
                if self.dump_once(ty, family.number(), &[], &mut each)? {
                    chains.append(&mut found);
                    break;
                }
            }
        }
        Ok(chains)
    }
}

fn read(family: Family, attrs: Attrs<'_>) -> Option<ForeignChain> {
    let hook = attrs
        .get(chain::HOOK)
        .and_then(|at| at.nested().u32(hook::HOOKNUM))
        .and_then(Hook::from_number);
    Some(ForeignChain {
        table: TableId::new(family, attrs.string(chain::TABLE)?),
        name: attrs.string(chain::NAME)?.to_owned(),
        drops: hook.is_some() && attrs.u32(chain::POLICY) == Some(DROP),
        hook,
    })
}
