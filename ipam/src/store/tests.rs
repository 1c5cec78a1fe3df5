use super::*;

const WAIT: Duration = Duration::from_secs(5);

fn owner(id: &str, ifname: &str) -> Owner {
    Owner {
        container_id: id.to_owned(),
        ifname: Some(ifname.to_owned()),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn open(dir: &tempfile::TempDir) -> (PathBuf, Locked) {
    let store = Store::new(dir.path(), "net");
    (dir.path().join("net"), store.lock(WAIT).unwrap())
}

#[test]
fn files_are_those_of_host_local() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    assert!(
        store
            .reserve(ip("10.0.0.2"), &owner("abc", "eth0"))
            .unwrap()
    );
    assert!(store.reserve(ip("fd00::a"), &owner("abc", "eth0")).unwrap());
    store.set_last_reserved(1, ip("fd00::a")).unwrap();
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(read("10.0.0.2"), "abc\r\neth0");
    assert_eq!(read("fd00::a"), "abc\r\neth0");
    assert_eq!(read("last_reserved_ip.1"), "fd00::a");
    drop(store);
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["10.0.0.2", "fd00::a", "last_reserved_ip.1", "lock"]);
}

#[test]
fn a_taken_address_is_not_given_twice_and_keeps_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = open(&dir);
    let (a, b) = (owner("a", "eth0"), owner("b", "eth0"));
    assert!(store.reserve(ip("10.0.0.2"), &a).unwrap());
    assert!(!store.reserve(ip("10.0.0.2"), &b).unwrap());
    let lease = store.lease(ip("10.0.0.2")).unwrap().unwrap();
    assert_eq!(lease.owner, Ok(a));
}

#[test]
fn freeing_an_owner_frees_its_interface_and_id_only_files_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    let mine = owner("abc", "eth0");
    store.reserve(ip("10.0.0.2"), &mine).unwrap();
    store.reserve(ip("fd00::2"), &mine).unwrap();
    store
        .reserve(ip("10.0.0.3"), &owner("abc", "eth1"))
        .unwrap();
    store
        .reserve(ip("10.0.0.4"), &owner("abcd", "eth0"))
        .unwrap();
    fs::write(path.join("10.0.0.5"), "  abc \n").unwrap();
    fs::write(path.join("10.0.0.6"), "abc\neth0\n").unwrap();
    fs::write(path.join("10.0.0.7"), "").unwrap();
    let freed = store.free_all_of(&mine).unwrap();
    assert_eq!(
        freed,
        ["10.0.0.2", "10.0.0.5", "10.0.0.6", "fd00::2"].map(ip)
    );
    assert_eq!(store.free_all_of(&mine).unwrap(), Vec::<IpAddr>::new());
    let left: Vec<_> = store.leases().unwrap().into_iter().map(|l| l.ip).collect();
    assert_eq!(left, ["10.0.0.3", "10.0.0.4", "10.0.0.7"].map(ip));
}

#[test]
fn damage_is_recognised() {
    let garbage: [&[u8]; 7] = [
        b"",
        b"\r\n",
        b"\0\0\0\0",
        b"\xff\xfe\x01",
        b"_bad\r\neth0",
        b"id\r\nan-interface-name-that-is-too-long",
        b"id\r\neth0\r\nmore",
    ];
    for content in garbage {
        assert_eq!(Owner::parse(content), Err(Damaged), "{content:?}");
    }
    let whole = Owner::parse(b"Ab.c-1_2\r\neth0").unwrap();
    assert_eq!(whole, owner("Ab.c-1_2", "eth0"));
}

#[test]
fn a_quarantined_lease_frees_its_address_and_keeps_the_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    fs::write(path.join("10.0.0.2"), b"\0\0").unwrap();
    assert!(!store.reserve(ip("10.0.0.2"), &owner("a", "eth0")).unwrap());
    store.quarantine(ip("10.0.0.2")).unwrap();
    assert!(store.reserve(ip("10.0.0.2"), &owner("a", "eth0")).unwrap());
    assert_eq!(fs::read(path.join(".damaged-10.0.0.2")).unwrap(), b"\0\0");
}

/// A request that is killed while it holds the lock: its destructors do not run.
fn killed(dir: &tempfile::TempDir, id: &str, ips: &[&str]) {
    let (_, store) = open(dir);
    for text in ips {
        assert!(store.reserve(ip(text), &owner(id, "eth0")).unwrap());
    }
    // The lock ends with its process, and here with the file.
    let lock = store._lock.try_clone().unwrap();
    std::mem::forget(store);
    lock.unlock().unwrap();
}

/// cni.md 55.
#[test]
fn what_a_killed_request_reserved_is_freed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    store.reserve(ip("10.0.0.2"), &owner("a", "eth0")).unwrap();
    drop(store);
    killed(&dir, "b", &["10.0.0.3", "fd00::3"]);
    let (_, store) = open(&dir);
    assert_eq!(store.leases().unwrap().len(), 3);
    let mut freed = store.free_interrupted(|_| false).unwrap();
    freed.sort();
    assert_eq!(freed, ["10.0.0.3", "fd00::3"].map(ip));
    assert_eq!(store.leases().unwrap()[0].ip, ip("10.0.0.2"));
    assert!(!path.join(REQUEST).exists());
    assert_eq!(
        store.free_interrupted(|_| false).unwrap(),
        [] as [IpAddr; 0]
    );
}

/// cni.md 55.
#[test]
fn a_killed_request_whose_attachment_exists_keeps_its_leases() {
    let dir = tempfile::tempdir().unwrap();
    killed(&dir, "b", &["10.0.0.3"]);
    let (path, store) = open(&dir);
    let freed = store.free_interrupted(|killed| *killed == owner("b", "eth0"));
    assert_eq!(freed.unwrap(), [] as [IpAddr; 0]);
    assert!(!path.join(REQUEST).exists());
    assert_eq!(store.leases().unwrap().len(), 1);
}

#[test]
fn the_request_under_way_is_not_an_interrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    store.reserve(ip("10.0.0.2"), &owner("a", "eth0")).unwrap();
    assert_eq!(
        store.free_interrupted(|_| false).unwrap(),
        [] as [IpAddr; 0]
    );
    assert!(path.join(REQUEST).exists());
    drop(store);
    assert!(!path.join(REQUEST).exists());
}

/// cni.md 51.
#[test]
fn a_half_written_request_is_replaced_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    let torn = "a much longer request of someone killed\n\n\n";
    fs::write(path.join(REQUEST), torn).unwrap();
    assert!(store.reserve(ip("10.0.0.2"), &owner("a", "eth0")).unwrap());
    assert_eq!(fs::read(path.join("10.0.0.2")).unwrap(), b"a\r\neth0");
    drop(store);
    assert!(!path.join(REQUEST).exists());
    fs::write(path.join(REQUEST), "").unwrap();
    let (_, store) = open(&dir);
    assert_eq!(
        store.free_interrupted(|_| false).unwrap(),
        [] as [IpAddr; 0]
    );
    assert!(!path.join(REQUEST).exists());
    assert_eq!(store.leases().unwrap().len(), 1);
}

#[test]
fn a_request_file_that_is_a_second_name_of_a_lease_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    killed(&dir, "a", &["10.0.0.2"]);
    let (path, store) = open(&dir);
    store.reserve(ip("10.0.0.3"), &owner("b", "eth0")).unwrap();
    store.set_last_reserved(0, ip("10.0.0.3")).unwrap();
    assert_eq!(fs::read(path.join("10.0.0.2")).unwrap(), b"a\r\neth0");
    assert_eq!(fs::read(path.join("10.0.0.3")).unwrap(), b"b\r\neth0");
}

#[test]
fn a_shorter_round_robin_pointer_replaces_a_longer_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    for text in ["10.0.0.254", "10.0.0.2", "10.0.0.33"] {
        store.set_last_reserved(0, ip(text)).unwrap();
        assert_eq!(
            fs::read_to_string(path.join("last_reserved_ip.0")).unwrap(),
            text
        );
    }
}

#[test]
fn a_torn_round_robin_pointer_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = open(&dir);
    assert_eq!(store.last_reserved(0), None);
    fs::write(path.join("last_reserved_ip.0"), "10.0.").unwrap();
    assert_eq!(store.last_reserved(0), None);
    fs::write(path.join("last_reserved_ip.0"), "10.0.0.9\n").unwrap();
    assert_eq!(store.last_reserved(0), Some(ip("10.0.0.9")));
}

#[test]
fn a_store_that_does_not_exist_is_not_created_to_release_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "net");
    assert!(store.lock_existing(WAIT).unwrap().is_none());
    assert!(!dir.path().join("net").exists());
    fs::create_dir(dir.path().join("net")).unwrap();
    // The disk was full when its lock was to be made.
    assert!(store.lock_existing(WAIT).unwrap().is_none());
    assert!(!dir.path().join("net/lock").exists());
    fs::write(dir.path().join("net/10.0.0.2"), "a\r\neth0").unwrap();
    let locked = store.lock_existing(WAIT).unwrap().unwrap();
    assert_eq!(locked.free_all_of(&owner("a", "eth0")).unwrap().len(), 1);
}

#[test]
fn a_data_dir_that_is_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("net"), "").unwrap();
    let error = Store::new(dir.path(), "net").lock(WAIT).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("net: "), "{text}");
}

#[test]
fn there_is_nothing_to_release_from_a_file_in_the_place_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for store in [Store::new(dir.path(), "file"), Store::new(&file, "net")] {
        assert!(store.lock_existing(WAIT).unwrap().is_none());
    }
}

#[test]
fn a_second_request_waits_for_the_first_and_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (path, first) = open(&dir);
    let store = Store::new(dir.path(), "net");
    let error = store.lock(Duration::from_millis(30)).unwrap_err();
    assert!(matches!(&error, StoreError::Busy { path: p, .. } if *p == path.join("lock")));
    drop(first);
    store.lock(WAIT).unwrap();
}
