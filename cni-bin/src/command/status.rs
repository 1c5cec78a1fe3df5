//! STATUS.

use dataplane::attachment::{Mode, Request};
use dataplane::bridge_netfilter;
use ipam::{ClaimError, Store};

use super::LOCK_TIMEOUT;
use crate::agent::Agent;
use crate::attachment::Records;
use crate::bridge::BridgeError;
use crate::delegate::Delegate;
use crate::link;
use crate::spec::args::ExtraArgs;
use crate::spec::{Code, Document, Environment, Error, Ipam, Verb};

/// Says whether an ADD could succeed: the configuration is right, leases can be
/// written, and the agent is there where it must be.
///
/// That addresses have run out is no failure of the node unless the configuration says
/// so: containerd would report it not ready, and its running pods would be evicted.
pub fn status(document: &Document, environment: &Environment) -> Result<(), Error> {
    let config = document.config(&ExtraArgs::default())?;
    // A bridge with VLANs does without.
    let needs_netfilter = config.port.mode == Mode::L2 && config.port.vlans.is_none();
    if needs_netfilter && !bridge_netfilter::is_available() {
        return Err(not_available(&BridgeError::NoBridgeNetfilter));
    }
    if let Some(error) = bridge_is_gone(document)? {
        return Err(error);
    }
    match &document.ipam {
        Ipam::InProcess => {
            let store = Store::new(&document.data_dir, &document.network);
            let locked = store.lock(LOCK_TIMEOUT);
            let locked = locked.map_err(|error| not_available(&error))?;
            let pool = config.pool.iter().filter(|_| config.status_exhausted);
            let mut sets = pool.flat_map(|pool| &pool.ranges);
            if let Some(set) = sets.find(|set| !locked.has_free(set)) {
                let error = ClaimError::Exhausted {
                    set: set.to_string(),
                };
                return Err(not_available(&error));
            }
        }
        Ipam::Plugin(name) => Delegate::find(name, document, environment)?.forward(Verb::Status)?,
        Ipam::Nobody => {}
    }
    let agent = Agent::connect(&document.agent_socket, document.policy);
    if let Some(mut agent) = agent.map_err(|error| not_available(&error))? {
        agent
            .ask(&Request::Ready)
            .map_err(|error| not_available(&error))?;
    }
    Ok(())
}

fn not_available(error: &dyn std::error::Error) -> Error {
    Error::new(Code::NotAvailable, error.to_string())
}

/// Pods that hang on a bridge which is gone are cut off; ADD would make the
/// bridge anew, but not their ports.
fn bridge_is_gone(document: &Document) -> Result<Option<Error>, Error> {
    let bridge = &document.bridge;
    if link::index(bridge).is_some() {
        return Ok(None);
    }
    let pods = Records::beside(&document.agent_socket).list()?;
    let pods = pods.iter().filter(|pod| {
        pod.key.network == document.network
            && pod.bridge.as_ref() == Some(bridge)
            && link::index(&pod.host_ifname).is_some()
    });
    let count = pods.count();
    if count == 0 {
        return Ok(None);
    }
    let message = format!("bridge {bridge} is gone and {count} pods are cut off: recreate them");
    Ok(Some(Error::new(Code::LimitedConnectivity, message)))
}
