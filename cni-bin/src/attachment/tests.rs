use dataplane::attachment::{MacAddr, Mode};

use super::*;

const SOON: Duration = Duration::from_millis(30);

fn attachment(id: &str) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: id.into(),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr([0x0a, 0x58, 10, 0, 0, 2]),
        ips: vec!["10.0.0.2".parse().unwrap()],
        undo: Default::default(),
        pod: None,
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
    }
}

#[test]
fn a_record_is_locked_by_its_writer_and_gone_after_removal() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    let key = attachment("a").key;
    assert!(records.open(&key, SOON).unwrap().is_none());
    let record = records.create(&attachment("a")).unwrap();
    assert!(matches!(
        records.open(&key, SOON),
        Err(RecordError::Busy { .. })
    ));
    assert!(record.is_unfinished());
    record.finish().unwrap();
    assert!(!record.is_unfinished());
    drop(record);
    let record = records.open(&key, SOON).unwrap().unwrap();
    assert_eq!(record.attachment, Some(attachment("a")));
    assert!(!record.is_unfinished());
    record.remove().unwrap();
    assert!(records.open(&key, SOON).unwrap().is_none());
    assert_eq!(
        fs::read_dir(dir.path().join("attachments"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_killed_add_leaves_a_record_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    drop(records.create(&attachment("a")).unwrap());
    let record = records.open(&attachment("a").key, SOON).unwrap().unwrap();
    assert!(record.is_unfinished());
    assert_eq!(record.attachment, Some(attachment("a")));
    record.remove().unwrap();
    assert_eq!(
        fs::read_dir(dir.path().join("attachments"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn an_add_that_learns_more_replaces_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    let first = records.create(&attachment("a")).unwrap();
    let mut more = attachment("a");
    more.ips.clear();
    // Of one that was killed while it did the same.
    let left = replacement(&records.path(&more.key));
    fs::write(&left, "{\"net").unwrap();
    let second = first.replace(&more).unwrap();
    drop(first);
    assert!(matches!(
        records.open(&more.key, Duration::ZERO),
        Err(RecordError::Busy { .. })
    ));
    assert!(second.is_unfinished());
    second.finish().unwrap();
    drop(second);
    let record = records.open(&more.key, SOON).unwrap().unwrap();
    assert_eq!(record.attachment, Some(more));
    assert_eq!(
        fs::read_dir(dir.path().join("attachments"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn of_two_adds_of_one_attachment_the_second_has_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    let mut other = attachment("a");
    other.ips = vec!["10.0.0.3".parse().unwrap()];
    let is_refused = || matches!(records.create(&other), Err(RecordError::Busy { .. }));
    let first = records.create(&attachment("a")).unwrap();
    assert!(is_refused());
    assert!(first.is_unfinished(), "both of its names are left to it");
    first.finish().unwrap();
    assert!(is_refused());
    drop(first);
    assert!(is_refused());
    let record = records.open(&other.key, SOON).unwrap().unwrap();
    assert!(!record.is_unfinished());
    assert_eq!(record.attachment, Some(attachment("a")));
    record.remove().unwrap();
    assert_eq!(
        records.create(&other).unwrap().attachment,
        Some(other.clone())
    );
}

#[test]
fn a_request_that_waited_for_a_removal_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    let record = records.create(&attachment("a")).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let found = records.open(&attachment("a").key, Duration::from_secs(20));
            found.unwrap().is_none()
        });
        std::thread::sleep(SOON);
        record.remove().unwrap();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_half_written_record_is_replaced_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    let folder = dir.path().join("attachments");
    fs::create_dir(&folder).unwrap();
    let key = attachment("a").key;
    let left = folder.join(key.file_name()).with_extension("tmp");
    fs::write(&left, "{\"net").unwrap();
    assert!(records.open(&key, SOON).unwrap().is_none());
    let record = records.create(&attachment("a")).unwrap();
    record.finish().unwrap();
    assert!(!left.exists());
    // Not of this record, which is finished.
    fs::write(&left, "{\"net").unwrap();
    fs::write(left.with_extension("new.tmp"), "{\"net").unwrap();
    assert!(!record.is_unfinished());
    records.remove_temporary(&key);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(records.list().unwrap(), [attachment("a")]);
}

#[test]
fn damaged_records_do_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::beside(&dir.path().join("agent.sock"));
    for id in ["b", "a"] {
        drop(records.create(&attachment(id)).unwrap());
    }
    let folder = dir.path().join("attachments");
    fs::write(folder.join("torn.json"), "{\"net").unwrap();
    fs::write(folder.join(attachment("c").key.file_name()), b"\xff\0").unwrap();
    fs::write(folder.join("0123.tmp"), "").unwrap();
    let ids: Vec<_> = records
        .list()
        .unwrap()
        .into_iter()
        .map(|a| a.key.container_id)
        .collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(records.damaged().unwrap().len(), 2);
    let damaged = records.open(&attachment("c").key, SOON).unwrap().unwrap();
    assert_eq!(damaged.attachment, None);
}
