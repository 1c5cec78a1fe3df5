//! What the server answers: pages of lists, watches, reviews of rights, Events.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Presence, Shared};
use crate::wait::{SOON, eventually};

/// How often the server looks whether it is to listen, and for whom.
const POLL: Duration = Duration::from_millis(5);

/// Kind, path and `apiVersion`.
pub(super) const RESOURCES: [(&str, &str, &str); 8] = [
    ("Namespace", "/api/v1/namespaces", "v1"),
    ("Node", "/api/v1/nodes", "v1"),
    ("Pod", "/api/v1/pods", "v1"),
    ("Service", "/api/v1/services", "v1"),
    (
        "EndpointSlice",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "discovery.k8s.io/v1",
    ),
    (
        "NetworkPolicy",
        "/apis/networking.k8s.io/v1/networkpolicies",
        "networking.k8s.io/v1",
    ),
    (
        "ClusterNetworkPolicy",
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        "policy.networking.k8s.io/v1alpha2",
    ),
    (
        "ServiceCIDR",
        "/apis/networking.k8s.io/v1/servicecidrs",
        "networking.k8s.io/v1",
    ),
];

/// Where rights are asked for.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Accepts until the end, and does not listen while away.
pub(super) fn listen(shared: &Arc<Shared>, first: TcpListener, address: SocketAddr) -> Result<()> {
    first.set_nonblocking(true)?;
    let mut listener = Some(first);
    loop {
        let presence = shared.state().presence;
        match (presence, &listener) {
            (Presence::Ended, _) => return Ok(()),
            (Presence::Away, Some(_)) => {
                listener = None;
                shared.state().is_deaf = true;
                shared.changed.notify_all();
            }
            (Presence::Away, None) => {}
            (Presence::Here, None) => {
                // A child of this process may have the old one until it begins its program.
                let (again, _) = eventually(SOON, || Ok(TcpListener::bind(address)?))
                    .context("cannot listen again")?;
                again.set_nonblocking(true)?;
                listener = Some(again);
                shared.state().is_deaf = false;
            }
            (Presence::Here, Some(open)) => {
                if let Ok((stream, _)) = open.accept() {
                    let shared = Arc::clone(shared);
                    // A client that goes away ends its connection: nothing to report.
                    thread::spawn(move || serve(&shared, stream).ok());
                    continue;
                }
            }
        }
        thread::sleep(POLL);
    }
}

/// One request for each connection.
fn serve(shared: &Shared, stream: TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    let mut length = 0;
    while reader.read_line(&mut header)? > 2 {
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
        header.clear();
    }
    let mut words = request.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if method != "GET" {
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        return match path {
            REVIEWS => review(shared, stream, &body),
            _ => write_event(shared, stream, path, &body),
        };
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
    if path == "/version" {
        return answer(shared, stream, 200, &json!({"major": "1", "minor": "36"}));
    }
    let Some((kind, _, api)) = RESOURCES.iter().find(|(_, of, _)| *of == path) else {
        return answer(shared, stream, 404, &status(404, "no such path"));
    };
    let Some(&"true" | &"1") = query.get("watch") else {
        return list(shared, stream, (kind, api), &query);
    };
    let version = query
        .get("resourceVersion")
        .and_then(|text| text.parse().ok());
    watch(shared, stream, kind, version.unwrap_or_default())
}

/// Takes what is written of Events, the only objects that the agent writes.
fn write_event(shared: &Shared, stream: TcpStream, target: &str, body: &[u8]) -> Result<()> {
    if !target.starts_with("/apis/events.k8s.io/v1/namespaces/") {
        return answer(shared, stream, 404, &status(404, "no such path"));
    }
    let event: Value = serde_json::from_slice(body)?;
    shared.state().events.push(event.clone());
    answer(shared, stream, 201, &event)
}

/// Whether the right is granted that a SelfSubjectAccessReview asks for.
fn review(shared: &Shared, stream: TcpStream, body: &[u8]) -> Result<()> {
    let mut review: Value = serde_json::from_slice(body)?;
    let asked = &review["spec"]["resourceAttributes"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let is_denied = shared
        .state()
        .denied
        .contains(&(text("verb"), text("resource")));
    review["status"] = json!({"allowed": !is_denied});
    answer(shared, stream, 201, &review)
}

/// A page of a list. What changes between two pages may be in it or not: a watch from the
/// first page's version tells it in any case.
fn list(
    shared: &Shared,
    stream: TcpStream,
    (kind, api): (&str, &str),
    query: &BTreeMap<&str, &str>,
) -> Result<()> {
    let mut state = shared.state();
    if state.failing.contains(kind) {
        drop(state);
        return answer(shared, stream, 500, &status(500, "told to fail"));
    }
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let (version, after) = match query.get("continue") {
        None => {
            if limit != Some(1) {
                *state.lists.entry(kind.to_owned()).or_default() += 1;
            }
            (state.version, String::new())
        }
        // The number of the version and the last key, which has a slash.
        Some(token) => {
            let token = token.replace("%2F", "/").replace("%3A", ":");
            let (version, after) = token.split_once(':').context("a token of this server")?;
            (version.parse()?, after.to_owned())
        }
    };
    let named = query.get("fieldSelector").and_then(|fields| {
        let name = fields.strip_prefix("metadata.name")?;
        Some(name.trim_start_matches("%3D").trim_start_matches('='))
    });
    let first = (Bound::Excluded((kind.to_owned(), after)), Bound::Unbounded);
    let mut rest = state
        .objects
        .range(first)
        .take_while(|((of, _), _)| of == kind)
        .filter(|(_, object)| named.is_none_or(|name| object["metadata"]["name"] == name))
        .peekable();
    let page: Vec<_> = rest.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if rest.peek().is_some()
        && let Some(((_, last), _)) = page.last()
    {
        metadata["continue"] = format!("{version}:{last}").into();
    }
    let items: Vec<_> = page.into_iter().map(|(_, object)| object.clone()).collect();
    drop(state);
    let list = json!({"apiVersion": api, "kind": format!("{kind}List"), "items": items,
        "metadata": metadata});
    answer(shared, stream, 200, &list)
}

/// Sends what changes after `seen`, until the round ends.
fn watch(shared: &Shared, mut stream: TcpStream, kind: &str, mut seen: u64) -> Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    )?;
    let round = shared.state().round;
    loop {
        let (events, is_gone) = {
            let mut state = shared.state();
            while state.round == round && state.version <= seen {
                state = shared
                    .changed
                    .wait(state)
                    .expect("no holder of this lock panics");
            }
            if state.round != round {
                return Ok(());
            }
            let is_gone = seen < state.forgotten;
            let news = state
                .history
                .iter()
                .filter(|(at, of, _)| *at > seen && of == kind);
            let events: Vec<_> = news.map(|(_, _, event)| event.clone()).collect();
            seen = state.version;
            (events, is_gone)
        };
        if is_gone {
            let gone = json!({"type": "ERROR", "object": status(410, "too old resource version")});
            writeln!(stream, "{gone}")?;
            return Ok(());
        }
        for event in events {
            let line = format!("{event}\n");
            shared.count(&line);
            stream.write_all(line.as_bytes())?;
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message})
}

fn answer(shared: &Shared, mut stream: TcpStream, code: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    shared.count(&body);
    let ahead = shared.state().clock_ahead;
    let now = match u64::try_from(ahead) {
        Ok(ahead) => SystemTime::now() + Duration::from_secs(ahead),
        Err(_) => SystemTime::now() - Duration::from_secs(ahead.unsigned_abs()),
    };
    write!(
        stream,
        "HTTP/1.1 {code} Test\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Date: {}\r\nContent-Length: {}\r\n\r\n{body}",
        httpdate::fmt_http_date(now),
        body.len()
    )?;
    Ok(())
}
