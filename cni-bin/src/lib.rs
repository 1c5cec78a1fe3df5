//! `trammel`, the CNI plugin: pods on a bridge with routed ports, addresses from
//! its own allocator, ports bound to policies before they open.
//!
//! A run is one request: `CNI_*` variables and a configuration on standard input
//! come in, at most one JSON document on standard output goes out, and nothing
//! on standard error unless the process cannot go on.
//!
//! * [`spec`]: the wire protocol. Pure.
//! * [`command`]: the verbs.
//! * [`netlink`], [`link`], [`carrier`], [`bridge`], [`shaping`], [`netns`], [`sysctl`],
//!   [`mtu`]: the kernel. Blocking, one thread, a handful of system calls. [`signals`]: ADD is not ended
//!   by them half way.
//! * [`nat`]: hostPorts and masquerading.
//! * [`delegate`]: an IPAM plugin of others. [`ipam_plugin`]: ours, for main plugins of
//!   others.
//! * [`attachment`]: records of what was done. [`reap`]: those that nobody will undo.
//!   [`agent`]: the conversation with the process that enforces policies.

pub mod agent;
pub mod attachment;
pub mod bridge;
pub mod carrier;
pub mod command;
pub mod delegate;
pub mod ipam_plugin;
pub mod link;
pub mod mtu;
pub mod nat;
pub mod netlink;
pub mod netns;
pub mod reap;
pub mod shaping;
pub mod signals;
pub mod spec;
pub mod sysctl;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use signals::Deferred;
use spec::version::{self, Version};
use spec::{Code, Document, Environment, Error, Verb};

/// Printed behind a plugin's name when someone runs it by hand.
const ABOUT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    ": CNI plugin; CNI protocol versions supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
);

/// How a plugin serves the verbs that come with a configuration: all but VERSION.
type Serve = fn(Verb, &Document, &Environment) -> Result<(), Error>;

/// Far more than any configuration; a runtime that sends more is broken.
const LARGEST_INPUT: u64 = 8 << 20;

/// How long VERSION waits for its input, which it can do without.
const VERSION_INPUT: Duration = Duration::from_millis(200);

/// Carries out the one request that environment and standard input hold.
pub fn run(variables: impl IntoIterator<Item = (OsString, OsString)>) -> ExitCode {
    run_plugin("trammel", variables, serve)
}

/// Carries out one request to the plugin `name`.
fn run_plugin(
    name: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    serve: Serve,
) -> ExitCode {
    let outcome = Environment::new(variables).and_then(|environment| {
        let verb = environment.verb()?;
        Ok((environment, verb))
    });
    let newest = Version::NEWEST.as_str();
    match outcome {
        Err(error) => exit(Err(error), newest),
        Ok((_, None)) => {
            eprintln!("{name} {ABOUT}");
            ExitCode::SUCCESS
        }
        Ok((_, Some(Verb::Version))) => {
            exit(print(&version::answer(early_input().as_ref())), newest)
        }
        Ok((environment, Some(verb))) => {
            let mut asked = newest.to_owned();
            let outcome = read(&environment, verb, &mut asked)
                .and_then(|document| serve(verb, &document, &environment));
            exit(outcome, &asked)
        }
    }
}

/// Reads the configuration. `asked` becomes the version that errors carry: the
/// configuration's, as far as it says one.
fn read(environment: &Environment, verb: Verb, asked: &mut String) -> Result<Document, Error> {
    // Before anything is read: a person who forgot a variable sits at a terminal.
    if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
        environment.target(verb)?;
    }
    let value = spec::json::parse(&input()?)?;
    let stated = value
        .as_object()
        .and_then(|object| spec::json::get(object, "cniVersion"));
    if let Some(stated) = stated.and_then(Value::as_str) {
        stated.clone_into(asked);
    }
    let document = Document::from_value(value)?;
    let since = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
    };
    if document.version < since {
        let message = format!(
            "cniVersion {}: {verb} exists since {since}",
            document.version
        );
        return Err(Error::new(Code::IncompatibleVersion, message));
    }
    Ok(document)
}

fn serve(verb: Verb, document: &Document, environment: &Environment) -> Result<(), Error> {
    match verb {
        Verb::Add => {
            let target = environment.target(verb)?;
            let signals = Deferred::block()?;
            let pending = command::add::add(document, environment, &target)?;
            report(pending, &signals)
        }
        Verb::Del => command::del::del(document, environment, &environment.target(verb)?),
        Verb::Check => command::check::check(document, environment, &environment.target(verb)?),
        Verb::Gc => command::gc::gc(document, environment),
        Verb::Status => command::status::status(document, environment),
        Verb::Version => print(&version::answer(None)),
    }
}

/// Hands the result over. A runtime that does not get it does not know the
/// attachment, which then must not exist.
fn report(pending: command::add::Pending<'_>, signals: &Deferred) -> Result<(), Error> {
    match pending
        .finish(signals)
        .and_then(|()| print(&pending.result))
    {
        Ok(()) => {
            pending.commit();
            Ok(())
        }
        Err(error) => Err(error.with_details(pending.revoke())),
    }
}

fn input() -> Result<Vec<u8>, Error> {
    let mut input = Vec::new();
    let read = io::stdin()
        .lock()
        .take(LARGEST_INPUT + 1)
        .read_to_end(&mut input);
    read.map_err(|error| Error::new(Code::Io, format!("cannot read standard input: {error}")))?;
    if input.len() as u64 > LARGEST_INPUT {
        let message = format!("standard input has more than {LARGEST_INPUT} bytes");
        return Err(Error::new(Code::Decode, message));
    }
    Ok(input)
}

/// The first JSON document on standard input, if it comes soon. A runtime may
/// keep the stream open, and need not write at all.
fn early_input() -> Option<Value> {
    let (sender, receiver) = mpsc::channel();
    let reader = thread::Builder::new().spawn(move || {
        let mut stream = serde_json::Deserializer::from_reader(io::stdin().lock());
        if let Ok(value) = Value::deserialize(&mut stream) {
            // Whoever listens may have stopped waiting.
            drop(sender.send(value));
        }
    });
    match reader {
        Ok(_) => receiver.recv_timeout(VERSION_INPUT).ok(),
        Err(_) => None,
    }
}

/// Writes the one document. In one call, so that it is whole or missing.
fn print(document: &Value) -> Result<(), Error> {
    let mut line = document.to_string();
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::new(Code::Io, format!("cannot write standard output: {error}")))
}

fn exit(outcome: Result<(), Error>, cni_version: &str) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    // If the error cannot be written either, the exit code is all that is left.
    if print(&error.to_json(cni_version)).is_err() {
        eprintln!("{error}");
    }
    ExitCode::FAILURE
}
