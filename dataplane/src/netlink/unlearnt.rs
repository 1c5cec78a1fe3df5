//! How often the map of session affinity was full.

use crate::kernel::KernelError;
use crate::layout::INET;
use crate::layout::services::is_learn_chain;
use crate::netlink::attr::{Attrs, Writer};
use crate::netlink::denials::packets;
use crate::netlink::socket::{Nftables, message_type};
use crate::netlink::uapi::{msg, rule};
use crate::object::Name;

impl Nftables {
    /// The flows whose client could not be remembered since the rules were written.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn unlearnt(&mut self) -> Result<u64, KernelError> {
        let mut request = Vec::new();
        Writer(&mut request).string(rule::TABLE, INET.name.as_str());
        loop {
            let mut unlearnt = 0;
            let mut each = |attrs: Attrs<'_>| {
                let chain = attrs.string(rule::CHAIN).map(Name::from);
                if chain.is_some_and(|chain| is_learn_chain(&chain)) {
                    unlearnt += packets(attrs).unwrap_or_default();
                }
            };
            let ty = message_type(msg::GETRULE);
            if self.dump_once(ty, INET.family.number(), &request, &mut each)? {
                return Ok(unlearnt);
            }
        }
    }
}
