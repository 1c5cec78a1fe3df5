//! What the manifests mean, written down by hand: which connections are answered.

/// The web servers, which are the endpoints of the Service as well.
pub(crate) const WEB: [&str; 2] = ["shop/web-1", "shop/web-2"];
/// The only client in the shop.
pub(crate) const FRONT: &str = "shop/front";
/// The pod of the lab that the web servers answer.
pub(crate) const TESTER: &str = "lab/tester";
/// The pod of the lab that they do not.
pub(crate) const VISITOR: &str = "lab/visitor";
/// Every pod, in the order of the table.
pub(crate) const PODS: [&str; 5] = [WEB[0], WEB[1], FRONT, TESTER, VISITOR];
/// The Service, as a column.
pub(crate) const SERVICE: &str = "Service web";

/// Whether a connection from a pod, the node or outside to a pod, the Service or
/// outside is answered. `None` where there is nothing to try, or where the answer
/// depends on the endpoint that is drawn.
pub(crate) fn answered(from: &str, to: &str) -> Option<bool> {
    let to_web = WEB.contains(&to) || to == SERVICE;
    if from == to || (WEB.contains(&from) && to == SERVICE) {
        return None;
    }
    let said = match from {
        FRONT => to_web,
        _ => !in_shop(from),
    };
    let heard = match to {
        _ if from == tests::scene::NODE => true,
        _ if to_web => from == FRONT || from == TESTER,
        _ => !in_shop(to),
    };
    Some(said && heard)
}

fn in_shop(name: &str) -> bool {
    name.starts_with("shop/")
}
