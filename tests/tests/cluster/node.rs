//! A node's network from nothing.

use anyhow::{Result, ensure};
use tests::wait::eventually;

use crate::cluster::{NODES, SOON, require_cluster};
use crate::load::answers;
use crate::objects::pod;
use crate::space::Space;

const NODE: &str = NODES[1];
const CONFLIST: &str = "/etc/cni/net.d/10-trammel.conflist";

/// issue 7, 3: NotReady until the network works.
#[test]
fn a_node_is_not_ready_until_its_network_works() -> Result<()> {
    let cluster = require_cluster!();
    let agent = cluster.without(NODE, "agent", "stop")?;
    cluster.node(NODE, &["rm", CONFLIST])?;
    eventually(SOON, || {
        ensure!(
            !cluster.is_ready(NODE)?,
            "{NODE} is Ready without a network"
        );
        Ok(())
    })?;
    agent.start()?;
    cluster.wait_until_ready(NODE)?;
    let space = Space::create(&cluster, "ready")?;
    space.apply(&[pod("first", NODE), pod("client", NODES[0])])?;
    let (first, client) = (space.ready_pod("first")?, space.ready_pod("client")?);
    answers(&client.netns, first.targets()[0])?;
    Ok(())
}
