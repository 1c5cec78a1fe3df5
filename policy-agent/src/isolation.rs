//! Keeps the pods' bridge ports isolated exactly while that breaks nothing, see
//! [`bridge_netfilter`]: the plugin decides once for each port, and the setting may change
//! while the pod lives.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use dataplane::attachment::{Attachment, Mode};
use dataplane::bridge_netfilter;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridgePort};

use crate::records;
use crate::runtime::Mail;

/// How often the setting is looked at.
const POLL: Duration = Duration::from_millis(400);

/// For this long after a change the ports are set again at each look: those of an ADD that
/// read the setting before.
const SETTLING: Duration = Duration::from_secs(5);

/// Follows the setting until nobody wants to know any more. `records` is the folder of the
/// attachment records.
///
/// # Errors
/// Where the kernel gives no route socket.
pub async fn follow(records: PathBuf, mail: Sender<Mail>) -> std::io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut last = None;
    let mut settling = Instant::now() + SETTLING;
    loop {
        let isolated = !bridge_netfilter::is_on();
        if last != Some(isolated) {
            settling = Instant::now() + SETTLING;
            if last.is_some() {
                tracing::info!(
                    isolated,
                    "bridge-nf-call-iptables has changed: setting ports"
                );
            }
        }
        if Instant::now() < settling {
            let ports = records::read(&records);
            set(
                &handle,
                ports.iter().filter(|at| has_routed_port(at)),
                isolated,
            )
            .await;
        }
        if last != Some(isolated) && mail.send(Mail::PortsIsolated(isolated)).is_err() {
            break;
        }
        last = Some(isolated);
        tokio::time::sleep(POLL).await;
    }
    connection.abort();
    Ok(())
}

/// Only these are isolated for policy's sake; what mode `l2` isolates is its own affair.
fn has_routed_port(attachment: &Attachment) -> bool {
    attachment.mode == Mode::RoutedPorts && attachment.bridge.is_some()
}

async fn set(handle: &Handle, ports: impl Iterator<Item = &Attachment>, isolated: bool) {
    for port in ports {
        // One that is not made yet, or gone already.
        let Ok(index) = if_nametoindex(port.host_ifname.as_str()) else {
            continue;
        };
        let message = LinkBridgePort::new(index).isolated(isolated).build();
        if let Err(error) = handle.link().set_port(message).execute().await {
            // The pod's own end, and with it the port, may go at any time.
            tracing::debug!(port = port.host_ifname, %error, "a port cannot be set");
        }
    }
}
