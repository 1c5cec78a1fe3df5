//! `trammel-ipam`: our allocator as an IPAM plugin, for the main plugins of others.
//!
//! `trammel` itself runs no plugin for it; both use the same files, in host-local's layout.
//! Nothing here knows whether a container lives: who holds an address is what its file
//! says, and a file that says nothing keeps its address. A network of this plugin must not
//! be one of `trammel`'s as well, which has records of its attachments.

use std::ffi::OsString;
use std::process::ExitCode;

use ipam::{Allocation, Claim, Locked, Owner, Store};
use ipnet::IpNet;
use serde_json::Value;

use crate::command::gc::is_listed;
use crate::command::{LOCK_TIMEOUT, owner, resolv_conf};
use crate::spec::args::ExtraArgs;
use crate::spec::result::{Addition, Dns, Ip};
use crate::spec::{Code, Document, Environment, Error, Target, Verb};
use crate::{print, run_plugin};

/// Carries out the one request that environment and standard input hold.
pub fn run(variables: impl IntoIterator<Item = (OsString, OsString)>) -> ExitCode {
    run_plugin("trammel-ipam", variables, serve)
}

fn serve(verb: Verb, document: &Document, environment: &Environment) -> Result<(), Error> {
    let store = Store::new(&document.ipam_data_dir()?, &document.network);
    match verb {
        Verb::Add => add(document, environment, &environment.target(verb)?, &store),
        Verb::Del => match store.lock_existing(LOCK_TIMEOUT)? {
            Some(locked) => {
                let key = environment.target(verb)?.key(&document.network);
                locked.free_all_of(&owner(&key))?;
                Ok(())
            }
            None => Ok(()),
        },
        Verb::Check => check(document, &environment.target(verb)?, &store),
        Verb::Gc => gc(document, &store),
        Verb::Status => {
            document.pool(&ExtraArgs::default())?;
            match store.lock(LOCK_TIMEOUT) {
                Ok(_) => Ok(()),
                Err(error) => Err(Error::new(Code::NotAvailable, error.to_string())),
            }
        }
        Verb::Version => unreachable!("answered without a configuration"),
    }
}

fn add(
    document: &Document,
    environment: &Environment,
    target: &Target,
    store: &Store,
) -> Result<(), Error> {
    let pool = document.pool(&environment.extra_args()?)?;
    let dns = match &pool.resolv_conf {
        Some(path) => resolv_conf(path)?,
        None => Dns::default(),
    };
    let owner = owner(&target.key(&document.network));
    let locked = store.lock(LOCK_TIMEOUT)?;
    // Whoever ran a request that was killed did not get its addresses.
    locked.free_interrupted(|_| false)?;
    if let Ok(boot) = ipam::boot::id() {
        locked.enter_boot(&boot, |_| false)?;
    }
    if let Some(ip) = held(&locked, &owner)?.first() {
        let id = &owner.container_id;
        let message = format!("ipam: {id} has the address {ip} already: DEL it first");
        return Err(Error::new(Code::Exists, message));
    }
    let claim = Claim {
        owner: &owner,
        sets: &pool.ranges,
        requested: &pool.requested,
        in_use: &|_| true,
    };
    let allocations = claim.run(&locked)?;
    let addition = Addition {
        interfaces: Vec::new(),
        ips: allocations.iter().map(ip).collect(),
        routes: pool.routes,
        dns,
    };
    let printed = addition.render(document.version, None);
    let printed = printed.and_then(|result: Value| print(&result));
    if printed.is_err() {
        // Who did not get the addresses will not give them back.
        for allocation in &allocations {
            locked.free(allocation.ip)?;
        }
    }
    printed
}

fn ip(allocation: &Allocation) -> Ip {
    let length = allocation.range.subnet().prefix_len();
    Ip {
        address: IpNet::new(allocation.ip, length).expect("the subnet is of the same family"),
        gateway: Some(allocation.range.gateway()),
        interface: None,
    }
}

fn check(document: &Document, target: &Target, store: &Store) -> Result<(), Error> {
    let key = target.key(&document.network);
    let held = match store.lock_existing(LOCK_TIMEOUT)? {
        Some(locked) => held(&locked, &owner(&key))?,
        None => Vec::new(),
    };
    if held.is_empty() {
        let message = format!("ipam: no address is leased to {key}");
        return Err(Error::new(Code::Mismatch, message));
    }
    Ok(())
}

fn gc(document: &Document, store: &Store) -> Result<(), Error> {
    let valid = document.valid_attachments()?.into_iter().collect();
    let Some(locked) = store.lock_existing(LOCK_TIMEOUT)? else {
        return Ok(());
    };
    let mut errors = Vec::new();
    for lease in locked.leases()? {
        if lease.owner.is_ok_and(|holder| !is_listed(&holder, &valid)) {
            errors.extend(locked.free(lease.ip).map_err(Error::from).err());
        }
    }
    Error::collect(errors)
}

/// The addresses that the attachment holds.
fn held(locked: &Locked, owner: &Owner) -> Result<Vec<std::net::IpAddr>, Error> {
    let leases = locked.leases()?.into_iter();
    let own = leases.filter(|lease| {
        let holder = lease.owner.as_ref();
        holder.is_ok_and(|holder| owner.holds(holder))
    });
    Ok(own.map(|lease| lease.ip).collect())
}
