//! `install`: what has to be on the node before the agent runs in a container: the plugins
//! where the runtime looks for them, and the sysctls.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::args::{Family, Install};
use crate::check::links;
use crate::config::Config;
use crate::sysctls::{self, ROOT};

/// The programs that a runtime calls.
pub const PROGRAMS: [&str; 2] = ["trammel", "trammel-ipam"];

/// Does what the arguments ask for.
///
/// # Errors
/// With what could not be installed or set, all of it.
pub fn run(arguments: &Install) -> anyhow::Result<ExitCode> {
    if arguments.to.is_none() && !arguments.sysctls && arguments.sysctl_dir.is_none() {
        bail!("nothing to install: give --to DIR, --sysctls or --sysctl-dir DIR");
    }
    if let Some(folder) = &arguments.to {
        let from = match &arguments.from {
            Some(from) => from.clone(),
            None => own_folder()?,
        };
        for name in PROGRAMS {
            let state = install(&from.join(name), folder, name)?;
            println!("{} {state}", folder.join(name).display());
        }
    }
    if arguments.sysctls || arguments.sysctl_dir.is_some() {
        install_sysctls(arguments)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn install_sysctls(arguments: &Install) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let links = runtime
        .block_on(links::look())
        .context("cannot list links")?;
    let wants = |family| arguments.family.is_empty() || arguments.family.contains(&family);
    let families = (wants(Family::Ipv4), wants(Family::Ipv6));
    let conntrack = &config.services.conntrack;
    let tracked = match conntrack.max_per_core {
        0 => 0,
        _ => u64::from(conntrack.min),
    };
    let needed = sysctls::needed(Path::new(ROOT), families, &links.advertised, tracked);
    if let Some(folder) = &arguments.sysctl_dir {
        println!(
            "{} written",
            sysctls::write_file(folder, &needed)?.display()
        );
    }
    if arguments.sysctls {
        let (required, useful): (Vec<_>, Vec<_>) =
            needed.into_iter().partition(|sysctl| sysctl.is_required);
        let (done, warnings) = sysctls::apply(Path::new(ROOT), &useful);
        done.iter().for_each(|line| println!("{line}"));
        for warning in warnings {
            eprintln!("trammel-agent: {warning}");
        }
        let (done, problems) = sysctls::apply(Path::new(ROOT), &required);
        done.iter().for_each(|line| println!("{line}"));
        if !problems.is_empty() {
            bail!(problems.join("; "));
        }
    }
    Ok(())
}

/// The folder of this program.
fn own_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where this program lies is not known")?;
    let folder = program.parent().map(Path::to_owned);
    folder.context("this program lies in no folder")
}

/// Copies a program by renaming, so that a runtime that starts it meanwhile gets the old one
/// or the new one, whole; one that runs goes on. Returns what became of it.
fn install(from: &Path, folder: &Path, name: &str) -> anyhow::Result<&'static str> {
    let program = fs::read(from).with_context(|| {
        format!(
            "cannot read {}: name the folder of the plugins with --from",
            from.display()
        )
    })?;
    let path = folder.join(name);
    let is_same = fs::read(&path).is_ok_and(|there| there == program);
    let is_executable = fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o111 == 0o111);
    if is_same && is_executable {
        return Ok("is there already");
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        // Of this process: another install may be at work.
        let new = folder.join(format!(".{name}.{}", std::process::id()));
        let written = fs::write(&new, &program)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
            .and_then(|()| File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            // The error that counts is the first.
            fs::remove_file(&new).ok();
        }
        written?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot install {}", path.display()))?;
    Ok("installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_replaced_at_once_and_only_where_it_differs() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = to.path().join("bin");
        let source = from.path().join("trammel");
        let mode = || {
            fs::metadata(folder.join("trammel"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        fs::write(&source, "one").unwrap();
        assert_eq!(install(&source, &folder, "trammel").unwrap(), "installed");
        assert_eq!(
            (install(&source, &folder, "trammel").unwrap(), mode()),
            ("is there already", 0o755)
        );
        // Whoever has the old one open keeps it.
        let mut old = File::open(folder.join("trammel")).unwrap();
        fs::write(&source, "two").unwrap();
        assert_eq!(install(&source, &folder, "trammel").unwrap(), "installed");
        let mut text = String::new();
        io::Read::read_to_string(&mut old, &mut text).unwrap();
        assert_eq!(text, "one");
        assert_eq!(fs::read_to_string(folder.join("trammel")).unwrap(), "two");
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_keeps_what_it_has() {
        let from = tempfile::tempdir().unwrap();
        let source = from.path().join("trammel");
        fs::write(&source, "new").unwrap();
        let file = from.path().join("file");
        fs::write(&file, "").unwrap();
        let error = install(&source, &file, "trammel").unwrap_err();
        assert!(format!("{error:#}").contains("cannot install"), "{error:#}");
        let error = install(&from.path().join("none"), from.path(), "x").unwrap_err();
        assert!(format!("{error:#}").contains("--from"), "{error:#}");
    }
}
