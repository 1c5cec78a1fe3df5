//! A disk that is full, read-only, or not there.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::containerd;

/// A file system of its own over a directory. Unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `options` as of tmpfs(5).
    fn mount(dir: &Path, options: &str) -> Result<Self> {
        let disk = Self(dir.to_owned());
        disk.set(MsFlags::empty(), options)?;
        Ok(disk)
    }

    fn remount(&self, flags: MsFlags, options: &str) -> Result<()> {
        self.set(MsFlags::MS_REMOUNT | flags, options)
    }

    fn set(&self, flags: MsFlags, options: &str) -> Result<()> {
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(options))
            .with_context(|| format!("cannot mount {} with {options:?}", self.0.display()))
    }

    /// Leaves neither a block nor an inode.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.0.join("filler"))?;
        while file.write_all(&[1; 4096]).is_ok() {}
        for number in 0.. {
            if File::create(self.0.join(format!("filler{number}"))).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// With everything that writes a file or an element.
fn keys() -> Value {
    let mut keys = containerd(&[(8080, 80, "tcp")]);
    keys["ipMasq"] = json!(true);
    keys
}

/// The directory of locks and records.
fn run_dir(node: &Node) -> Result<PathBuf> {
    let parent = node.records_dir().parent().map(Path::to_owned);
    parent.context("records lie in a directory")
}

fn assert_no_trace(node: &Node, pod: &NetNs) -> Result<()> {
    assert_empty(node)?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    let links = pod.ip_json("link show")?;
    assert_eq!(inspect::items(&links).len(), 1, "lo alone: {links}");
    Ok(())
}

/// Runs ADD on ever larger disks until it succeeds; returns how many were too small.
fn add_while_the_disk_grows(limit: &str, dir: fn(&Node) -> Result<PathBuf>) -> Result<u32> {
    let node = Node::new()?;
    let dir = dir(&node)?;
    let pod = NetNs::create("pod")?;
    let call = |verb| Call::new(&node, verb, "c1", &pod).keys(keys());
    for size in 1..64 {
        let disk = Tmpfs::mount(&dir, &format!("{limit}={size}"))?;
        if limit == "nr_blocks" {
            // 0 is no limit, so that the first block has to be somebody else's.
            fs::write(disk.0.join("filler"), "1")?;
        }
        let what = format!("{limit}={size} of {}", dir.display());
        let reply = call("ADD").run()?;
        if reply.code == 0 {
            call("DEL").silent()?;
            assert_no_trace(&node, &pod)?;
            return Ok(size - 1);
        }
        let error: Value = serde_json::from_str(&reply.stdout).context(what.clone())?;
        assert_eq!(error["code"], 5, "{what}: {error}");
        let text = error.to_string();
        ensure!(text.contains("No space left"), "{what}: {error}");
        ensure!(text.contains(&*dir.to_string_lossy()), "{what}: {error}");
        ensure!(!text.contains("not undone"), "{what}: {error}");
        assert_no_trace(&node, &pod).context(what.clone())?;
        // DEL after the failed ADD, as runtimes do, on the disk that is full still.
        call("DEL").silent().context(what.clone())?;

        disk.remount(MsFlags::empty(), &format!("{limit}=64"))?;
        let mut with_result = keys();
        with_result["prevResult"] = call("ADD").result().context(what)?;
        call("CHECK").keys(with_result).silent()?;
        call("DEL").silent()?;
        assert_no_trace(&node, &pod)?;
    }
    anyhow::bail!("ADD takes more than 64 of {limit}")
}

/// cni.md 48: at every write, of blocks and of inodes.
#[test]
fn an_add_on_a_full_disk_is_code_5_and_works_when_there_is_space() -> Result<()> {
    require_root!();
    let data = |node: &Node| Ok(node.data_dir());
    for (limit, dir, at_least) in [
        // The mark of the boot, the leases, where each search goes on.
        ("nr_blocks", data as fn(&Node) -> Result<PathBuf>, 4),
        ("nr_inodes", data, 8),
        ("nr_blocks", run_dir, 1),
        ("nr_inodes", run_dir, 4),
    ] {
        let failed = add_while_the_disk_grows(limit, dir)?;
        assert!(failed >= at_least, "{limit}: only {failed} writes failed");
    }
    Ok(())
}

/// cni.md 48.
#[test]
fn del_check_and_gc_work_while_the_disk_is_full() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pods = [NetNs::create("one")?, NetNs::create("two")?];
    let disks = [node.data_dir(), run_dir(&node)?]
        .map(|dir| Tmpfs::mount(&dir, "nr_blocks=64,nr_inodes=64"));
    let disks = disks.into_iter().collect::<Result<Vec<_>>>()?;
    let call = |verb, id, pod| Call::new(&node, verb, id, pod).keys(keys());
    let mut with_result = keys();
    with_result["prevResult"] = call("ADD", "c1", &pods[0]).result()?;
    Call::new(&node, "ADD", "c2", &pods[1]).result()?;
    disks.iter().try_for_each(Tmpfs::fill)?;

    let late = NetNs::create("late")?;
    let (code, text) = Call::new(&node, "ADD", "c3", &late).error()?;
    assert_eq!(code, 5, "{text}");
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (2, 4));
    call("CHECK", "c1", &pods[0]).keys(with_result).silent()?;
    call("DEL", "c1", &pods[0]).silent()?;
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
    let gc = json!({"cni.dev/valid-attachments": []});
    Call::bare(&node, "GC").keys(gc).silent()?;
    for pod in &pods {
        assert_no_trace(&node, pod)?;
    }
    Ok(())
}

/// cni.md 49, 61: nothing can be given out or freed, and nothing is lost.
#[test]
fn a_read_only_disk_is_code_5_and_del_is_finished_when_it_can_be_written() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (pod, late) = (NetNs::create("pod")?, NetNs::create("late")?);
    let disk = Tmpfs::mount(&node.data_dir(), "")?;
    let call = |verb| Call::new(&node, verb, "c1", &pod).keys(keys());
    let refused = |call: &Call<'_>, code: u64| -> Result<()> {
        let (found, text) = call.error()?;
        assert_eq!(found, code, "{text}");
        ensure!(text.contains(&*node.data_dir().to_string_lossy()), "{text}");
        ensure!(text.contains("Read-only"), "{text}");
        Ok(())
    };
    // Before there is a directory of the network, and with one.
    disk.remount(MsFlags::MS_RDONLY, "")?;
    refused(&call("ADD"), 5)?;
    assert_no_trace(&node, &pod)?;
    call("DEL").silent()?;
    disk.remount(MsFlags::empty(), "")?;
    let mut with_result = keys();
    with_result["prevResult"] = call("ADD").result()?;
    disk.remount(MsFlags::MS_RDONLY, "")?;
    refused(&Call::new(&node, "ADD", "c2", &late), 5)?;
    refused(&Call::bare(&node, "STATUS"), 50)?;
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
    call("CHECK").keys(with_result).silent()?;

    refused(&call("DEL"), 5)?;
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (0, 2));
    ensure!(!node.records()?.is_empty(), "the next DEL finds it");
    disk.remount(MsFlags::empty(), "")?;
    call("DEL").silent()?;
    Call::bare(&node, "STATUS").silent()?;
    assert_no_trace(&node, &pod)
}

/// cni.md 49.
#[test]
fn a_file_in_the_place_of_the_data_dir_is_code_5_and_del_has_nothing_to_free() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let file = node.dir().join("file");
    let of_network = node.dir().join("dir").join(node.network());
    fs::create_dir(node.dir().join("dir"))?;
    for (data_dir, path) in [
        (file.clone(), file),
        (node.dir().join("dir"), of_network.clone()),
    ] {
        fs::write(&path, "precious")?;
        let mut keys = keys();
        keys["ipam"] = json!({"dataDir": data_dir});
        let (code, text) = Call::new(&node, "ADD", "c1", &pod)
            .keys(keys.clone())
            .error()?;
        assert_eq!(code, 5, "{text}");
        ensure!(text.contains(&*path.to_string_lossy()), "{text}");
        assert_no_trace(&node, &pod)?;
        let status = Call::bare(&node, "STATUS").keys(keys.clone());
        assert_eq!(status.error()?.0, 50);
        Call::new(&node, "DEL", "c1", &pod).keys(keys).silent()?;
        assert_eq!(fs::read_to_string(&path)?, "precious");
    }
    Ok(())
}
