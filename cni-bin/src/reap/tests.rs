use std::time::SystemTime;

use dataplane::attachment::{MacAddr, Mode, NetnsId, Undo};

use super::*;

/// A folder with the traces of attachments, none of which has a link.
struct Traces(tempfile::TempDir);

impl Traces {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ipam/net")).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("run/agent.sock")
    }

    fn attachment(&self, id: &str, netns: &str) -> Attachment {
        let key = AttachmentKey {
            network: "net".into(),
            container_id: id.into(),
            ifname: "eth0".into(),
        };
        Attachment {
            host_ifname: key.host_ifname(),
            key,
            netns: netns.into(),
            mode: Mode::RoutedPorts,
            bridge: None,
            mac: MacAddr([2; 6]),
            ips: vec!["10.0.0.2".parse().unwrap()],
            undo: Undo {
                netns_id: None,
                boot: ipam::boot::id().ok(),
                data_dir: Some(self.0.path().join("ipam")),
                plugin: None,
                ..Undo::default()
            },
            pod: None,
            port_mappings: Vec::new(),
            masquerade_beyond: Vec::new(),
            bandwidth: None,
        }
    }

    /// Writes what a complete ADD leaves.
    fn add(&self, attachment: &Attachment) {
        let lease = format!("{}\r\neth0", attachment.key.container_id);
        for ip in &attachment.ips {
            fs::write(self.0.path().join(format!("ipam/net/{ip}")), &lease).unwrap();
        }
        self.records().create(attachment).unwrap().finish().unwrap();
    }

    fn records(&self) -> Records {
        Records::beside(&self.socket())
    }

    fn reap(&self) -> Vec<(Option<String>, Cause)> {
        let reaped = reap(&self.socket()).unwrap().into_iter();
        reaped
            .map(|one| {
                assert_eq!(one.errors, []);
                (one.key.map(|key| key.container_id), one.cause)
            })
            .collect()
    }

    /// Names of the leases and of all files beside the records.
    fn left(&self) -> (Vec<String>, usize) {
        let leases = Store::new(&self.0.path().join("ipam"), "net")
            .lock(Duration::ZERO)
            .unwrap()
            .leases()
            .unwrap();
        let leases = leases.iter().map(|lease| lease.ip.to_string()).collect();
        let records = fs::read_dir(self.0.path().join("run/attachments"));
        (leases, records.map_or(0, Iterator::count))
    }
}

/// The namespace of this test: one that exists, in which nothing is called eth99.
const ALIVE: &str = "/proc/self/ns/net";

#[test]
fn an_attachment_whose_namespace_is_gone_is_undone_from_its_record_alone() {
    let traces = Traces::new();
    traces.add(&traces.attachment("a", "/nonexistent/netns"));
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::NetnsGone)]);
    assert_eq!(traces.left(), (vec![], 0));
    assert_eq!(traces.reap(), []);
}

#[test]
fn a_path_that_is_no_namespace_any_more_is_one_that_is_gone() {
    let traces = Traces::new();
    // What `umount` leaves of the file of a named namespace.
    let file = traces.0.path().join("unmounted");
    fs::write(&file, "").unwrap();
    traces.add(&traces.attachment("a", file.to_str().unwrap()));
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::NetnsGone)]);
}

#[test]
fn a_path_that_leads_to_another_namespace_is_one_that_was_replaced() {
    let traces = Traces::new();
    let mut attachment = traces.attachment("a", ALIVE);
    attachment.undo.netns_id = Some(NetnsId { dev: 1, ino: 1 });
    traces.add(&attachment);
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::NetnsReplaced)]);
}

#[test]
fn an_attachment_of_an_earlier_boot_is_dead_whatever_its_path_says() {
    let traces = Traces::new();
    let mut attachment = traces.attachment("a", ALIVE);
    attachment.key.ifname = "lo".into();
    attachment.undo.boot = Some("00000000-0000-4000-8000-000000000000".into());
    traces.add(&attachment);
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::OtherBoot)]);
    assert_eq!(traces.left().1, 0);
}

#[test]
fn a_namespace_that_cannot_be_opened_is_taken_for_a_living_one() {
    let traces = Traces::new();
    // A name that is too long is neither "not there" nor a namespace.
    let path = format!("/run/netns/{}", "x".repeat(300));
    traces.add(&traces.attachment("a", &path));
    assert_eq!(traces.reap(), []);
    assert_eq!(traces.left(), (vec!["10.0.0.2".into()], 1));
}

#[test]
fn a_request_under_way_is_left_alone_and_a_killed_one_is_undone() {
    let traces = Traces::new();
    let attachment = traces.attachment("a", ALIVE);
    let under_way = traces.records().create(&attachment).unwrap();
    assert_eq!(traces.reap(), []);
    drop(under_way);
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::Unfinished)]);
    assert_eq!(traces.left().1, 0);
}

#[test]
fn a_damaged_record_goes_and_the_others_are_judged_all_the_same() {
    let traces = Traces::new();
    traces.add(&traces.attachment("a", "/nonexistent/netns"));
    let folder = traces.0.path().join("run/attachments");
    fs::write(folder.join("0123456789ab.json"), "{\"net").unwrap();
    let mut reaped = traces.reap();
    reaped.sort_by_key(|(key, _)| key.clone());
    assert_eq!(
        reaped,
        [(None, Cause::Damaged), (Some("a".into()), Cause::NetnsGone)]
    );
    assert_eq!(traces.left(), (vec![], 0));
}

#[test]
fn what_cannot_be_undone_keeps_its_record_and_says_so() {
    let traces = Traces::new();
    traces.add(&traces.attachment("a", "/nonexistent/netns"));
    let dir = traces.0.path().join("ipam/net");
    fs::remove_dir_all(&dir).unwrap();
    // Nobody can say what leads to itself.
    std::os::unix::fs::symlink("net", &dir).unwrap();
    let reaped = reap(&traces.socket()).unwrap();
    assert_eq!(reaped[0].errors.len(), 1, "{reaped:?}");
    assert!(traces.records().exists(reaped[0].key.as_ref().unwrap()));
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    assert_eq!(traces.reap(), [(Some("a".into()), Cause::NetnsGone)]);
}

#[test]
fn what_a_kill_before_the_record_left_goes_when_it_is_old() {
    let traces = Traces::new();
    let folder = traces.0.path().join("run/attachments");
    fs::create_dir_all(&folder).unwrap();
    for (name, age) in [("old.tmp", LONG_AGO * 2), ("new.tmp", Duration::ZERO)] {
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    assert_eq!(traces.reap(), []);
    assert!(!folder.join("old.tmp").exists());
    assert!(folder.join("new.tmp").exists());
}

#[test]
fn leases_are_freed_where_a_record_names_their_directory() {
    let traces = Traces::new();
    traces.add(&traces.attachment("a", ALIVE));
    let dir = traces.0.path().join("ipam/net");
    // A request that was killed, and a boot that is over.
    fs::write(dir.join("10.0.0.9"), "b\r\neth0").unwrap();
    fs::hard_link(dir.join("10.0.0.9"), dir.join(".request")).unwrap();
    fs::write(dir.join("10.0.0.8"), "c\r\neth0").unwrap();
    fs::write(dir.join(ipam::boot::MARK), "another boot").unwrap();
    for name in ["10.0.0.2", "10.0.0.8"] {
        let file = fs::File::options()
            .write(true)
            .open(dir.join(name))
            .unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    reap_leases(&traces.socket()).unwrap();
    assert_eq!(traces.left().0, ["10.0.0.2"], "that of the attachment");
}
