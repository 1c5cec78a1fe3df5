use std::path::Path;

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, Mode};

use super::read;

fn attachment(container: &str) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: None,
        mac: MacAddr([0; 6]),
        ips: vec!["10.88.0.2".parse().expect("an address")],
        undo: Default::default(),
        pod: None,
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
    }
}

fn write(folder: &Path, attachment: &Attachment) {
    let text = serde_json::to_vec(attachment).expect("JSON");
    std::fs::write(folder.join(attachment.key.file_name()), text).expect("written");
}

#[test]
fn a_folder_that_is_not_there_holds_none() {
    assert_eq!(read(Path::new("/nonexistent/attachments")), []);
}

#[test]
fn records_are_read_in_the_order_of_their_keys_and_bad_ones_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let wanted: Vec<_> = ["a", "b", "c", "d"].map(attachment).into();
    for attachment in wanted.iter().rev() {
        write(folder.path(), attachment);
    }
    for (name, text) in [
        ("half.json", r#"{"network": "net", "#),
        ("other.json", r#"{"network": "net"}"#),
        (".tmp-1", "{}"),
        ("README", "not a record"),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    std::fs::create_dir(folder.path().join("folder.json")).expect("made");
    assert_eq!(read(folder.path()), wanted);
}
