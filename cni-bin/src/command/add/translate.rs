//! hostPorts and masquerading: taken with the record, in the kernel when the port is.

use dataplane::attachment::Attachment;

use super::Plan;
use super::made::Made;
use crate::attachment::{Record, Records};
use crate::command::LOCK_TIMEOUT;
use crate::nat::{self, NodeLock};
use crate::spec::Error;

impl Plan<'_> {
    /// Writes the record. With it the hostPorts are taken.
    pub(super) fn record(
        &self,
        records: &Records,
        attachment: &Attachment,
    ) -> Result<Record, Error> {
        let mappings = &attachment.port_mappings;
        if mappings.is_empty() {
            return Ok(records.create(attachment)?);
        }
        let lock = NodeLock::take(&self.document.agent_socket, LOCK_TIMEOUT)?;
        lock.refuse_taken(&attachment.key, mappings)?;
        Ok(records.create(attachment)?)
    }

    /// Does what an agent has not done, or cannot.
    pub(super) fn translate(
        &self,
        made: &mut Made<'_>,
        attachment: &Attachment,
        is_away: bool,
    ) -> Result<(), Error> {
        if !nat::concerns(attachment) {
            return Ok(());
        }
        made.nat = true;
        let lock = NodeLock::take(&self.document.agent_socket, LOCK_TIMEOUT)?;
        if is_away {
            lock.write()?;
        }
        lock.open_loopback(attachment)?;
        Ok(nat::forget_flows_past(attachment)?)
    }
}
