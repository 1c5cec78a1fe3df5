//! What the kernel knows of denied packets: how many, and what they were sent to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::kernel::KernelError;
use crate::layout::denials::{self, ORIGINS};
use crate::layout::{self, INET};
use crate::netlink::attr::{Attr, Attrs, Writer};
use crate::netlink::socket::{Nftables, message_type};
use crate::netlink::uapi::{LIST_ELEM, counter, data, elem, elem_list, expr, msg, rule};
use crate::object::{IpFamily, Name, TableId};

impl Nftables {
    /// The packets that each chain of [`denials::counts_denials`] has denied since it was
    /// written.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn denied(&mut self) -> Result<BTreeMap<Name, u64>, KernelError> {
        let mut denied = BTreeMap::new();
        for table in layout::tables() {
            for (chain, packets) in self.denied_in(&table)? {
                *denied.entry(chain).or_insert(0) += packets;
            }
        }
        Ok(denied)
    }

    fn denied_in(&mut self, table: &TableId) -> Result<BTreeMap<Name, u64>, KernelError> {
        let mut request = Vec::new();
        Writer(&mut request).string(rule::TABLE, table.name.as_str());
        loop {
            let mut denied = BTreeMap::new();
            let mut each = |attrs: Attrs<'_>| {
                let chain = attrs.string(rule::CHAIN).map(Name::from);
                let chain = chain.filter(|chain| denials::counts_denials(chain).is_some());
                if let (Some(chain), Some(packets)) = (chain, packets(attrs)) {
                    *denied.entry(chain).or_insert(0) += packets;
                }
            };
            let ty = message_type(msg::GETRULE);
            if self.dump_once(ty, table.family.number(), &request, &mut each)? {
                return Ok(denied);
            }
        }
    }

    /// What the sender of a packet that was denied of late addressed, where that was
    /// translated.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn origin(
        &mut self,
        source: IpAddr,
        protocol: u8,
        source_port: u16,
    ) -> Result<Option<SocketAddr>, KernelError> {
        let family = IpFamily::of(source);
        let mut request = Vec::new();
        let mut writer = Writer(&mut request);
        writer.string(elem_list::TABLE, INET.name.as_str());
        writer.string(elem_list::SET, ORIGINS.of(family).as_str());
        writer.nest(elem_list::ELEMENTS, |w| {
            w.nest(LIST_ELEM, |w| {
                w.nest(elem::KEY, |w| {
                    let key = denials::origin_key(source, protocol, source_port);
                    w.bytes(data::VALUE, &key);
                });
            });
        });
        let mut found = None;
        let mut each = |attrs: Attrs<'_>| found = origin(family, attrs);
        let ty = message_type(msg::GETSETELEM);
        self.get(ty, INET.family.number(), &request, &mut each)?;
        Ok(found)
    }
}

fn origin(family: IpFamily, attrs: Attrs<'_>) -> Option<SocketAddr> {
    let mut list = attrs.get(elem_list::ELEMENTS)?.nested();
    let element = list.find(|attr| attr.ty == LIST_ELEM)?.nested();
    let value = element.get(elem::DATA)?.nested().get(data::VALUE)?;
    denials::parse_origin(family, value.payload)
}

/// What the rule's counter has counted; `None` without one.
pub(super) fn packets(rule: Attrs<'_>) -> Option<u64> {
    let mut expressions = rule.get(rule::EXPRESSIONS)?.nested();
    let counted = expressions.find_map(|element| {
        let expression = element.nested();
        let is_counter = expression.string(expr::NAME) == Some("counter");
        is_counter.then(|| expression.get(expr::DATA))?
    })?;
    counted.nested().get(counter::PACKETS).and_then(Attr::u64)
}
