//! One file's contents: documents, Lists, objects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use proxy::model::ObjectKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{MessageFormatter, UserMessageFormatter};

use super::files::digest;
use super::{Id, ParsedFile, Problem};
use crate::event::{Kind, Object};
use crate::source::convert::{ClusterNetworkPolicy, Convert, object_key};

/// What a file claims about one object.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Document, counted from 1.
    pub(super) document: usize,
    /// Its first line.
    pub(super) line: usize,
    /// Digest of the object as written.
    pub(super) digest: u64,
    /// Whether it can be used.
    pub(super) state: ClaimState,
}

/// Whether an object can be used.
#[derive(Clone, Debug)]
pub(super) enum ClaimState {
    /// Yes.
    Good,
    /// It is no business of ours, such as an ExternalName Service.
    NotOurs,
    /// No, because of that.
    Invalid(String),
}

/// The contents of a file.
#[derive(Default)]
pub(super) struct Parsed {
    items: BTreeMap<Id, (Claim, Option<Object>)>,
    /// Problems, in order.
    pub(super) problems: Vec<Problem>,
    /// Some document does not say which object it is.
    pub(super) hides_objects: bool,
    /// Kinds that are none of ours, as `apiVersion/kind`.
    pub(super) other_kinds: BTreeSet<String>,
}

/// A file while it is read.
struct Reader<'a> {
    file: &'a Path,
    parsed: Parsed,
}

/// Where in a file something is.
#[derive(Clone)]
struct Place {
    document: usize,
    line: usize,
    /// `items[3].` in a List.
    prefix: String,
}

/// Reads a file's bytes. Whatever is wrong with one document leaves the others alone.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Parsed {
    let mut reader = Reader {
        file,
        parsed: Parsed::default(),
    };
    match std::str::from_utf8(bytes) {
        Err(error) => reader.opaque(
            &Place::new(0, 0),
            &format!("is not UTF-8 ({error}): save it as UTF-8"),
        ),
        Ok(text) if file.extension().is_some_and(|e| e == "json") => reader.json(text),
        Ok(text) => reader.yaml(text),
    }
    reader.parsed
}

impl Parsed {
    /// What the file claims.
    pub(super) fn claims(&self) -> BTreeMap<Id, Claim> {
        let claims = self.items.iter();
        claims
            .map(|(id, (claim, _))| (id.clone(), claim.clone()))
            .collect()
    }

    /// Takes the object out, if it is there in that state.
    pub(super) fn take(&mut self, id: &Id, digest: u64) -> Option<Object> {
        let (claim, object) = self.items.get_mut(id)?;
        object.take_if(|_| claim.digest == digest)
    }
}

impl From<Parsed> for ParsedFile {
    fn from(parsed: Parsed) -> Self {
        let objects = parsed.items.into_values();
        Self {
            objects: objects.filter_map(|(_, object)| object).collect(),
            problems: parsed.problems,
            other_kinds: parsed.other_kinds,
        }
    }
}

impl Place {
    fn new(document: usize, line: usize) -> Self {
        Self {
            document,
            line,
            prefix: String::new(),
        }
    }
}

impl Reader<'_> {
    /// Any number of JSON values, one after the other.
    fn json(&mut self, text: &str) {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let (mut line, mut counted) = (1, 0);
        for document in 1.. {
            let rest = text.get(stream.byte_offset()..).unwrap_or_default();
            let start = text.len() - rest.trim_start().len();
            line += text
                .get(counted..start)
                .map_or(0, |t| t.matches('\n').count());
            counted = start;
            match stream.next() {
                None => return,
                Some(Ok(value)) => self.value(value, &Place::new(document, line)),
                Some(Err(error)) => {
                    let place = Place::new(document, error.line());
                    return self.opaque(&place, &format!("is no JSON, correct it: {error}"));
                }
            }
        }
    }

    fn yaml(&mut self, text: &str) {
        for (document, (line, chunk)) in (1..).zip(split_documents(text)) {
            match parse_yaml(chunk) {
                Ok(value) => {
                    self.value(
                        value,
                        &Place::new(document, line + lines_before_content(chunk)),
                    );
                }
                Err((offset, message)) => self.opaque(
                    &Place::new(document, line + offset),
                    &format!("is no YAML, correct it: {message}"),
                ),
            }
        }
    }

    /// A document or an item of a List.
    fn value(&mut self, value: Value, place: &Place) {
        let mut map = match value {
            Value::Null => return,
            Value::Object(map) => map,
            _ => return self.opaque(place, "is no object: begin with apiVersion and kind"),
        };
        let api_version = text(map.get("apiVersion")).unwrap_or_default().to_owned();
        let Some(kind) = text(map.get("kind")).map(str::to_owned) else {
            return self.opaque(place, "has no kind: begin with apiVersion and kind");
        };
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(Value::Array(items)) = map.remove("items")
        {
            return self.list(items, &api_version, item_kind, place);
        }
        match kind_of(&api_version, &kind) {
            Ok(Some(kind)) => self.object(kind, &Value::Object(map), place),
            Ok(None) => {
                self.parsed
                    .other_kinds
                    .insert(format!("{api_version}/{kind}"));
            }
            Err((kind, wanted)) => {
                let message = format!(
                    "{}apiVersion is {api_version:?}: write {wanted}",
                    place.prefix
                );
                self.invalid(kind, &Value::Object(map), place, message);
            }
        }
    }

    /// Items of a typed list (`PodList`) may leave out their own kind.
    fn list(&mut self, items: Vec<Value>, api_version: &str, item_kind: &str, place: &Place) {
        for (i, mut item) in items.into_iter().enumerate() {
            if let Value::Object(map) = &mut item
                && !item_kind.is_empty()
                && !map.contains_key("kind")
            {
                map.insert("kind".into(), item_kind.into());
                map.insert("apiVersion".into(), api_version.into());
            }
            let place = Place {
                prefix: format!("{}items[{i}].", place.prefix),
                ..place.clone()
            };
            self.value(item, &place);
        }
    }

    fn object(&mut self, kind: Kind, value: &Value, place: &Place) {
        let result = match kind {
            Kind::Namespace => typed::<core::Namespace>(value),
            Kind::Node => typed::<core::Node>(value),
            Kind::Pod => typed::<core::Pod>(value),
            Kind::Service => typed::<core::Service>(value),
            Kind::EndpointSlice => typed::<discovery::EndpointSlice>(value),
            Kind::NetworkPolicy => typed::<networking::NetworkPolicy>(value),
            Kind::ClusterNetworkPolicy => typed::<ClusterNetworkPolicy>(value),
            Kind::ServiceCidr => typed::<networking::ServiceCIDR>(value),
        };
        match result {
            Err(reason) => {
                self.invalid(kind, value, place, format!("{}{reason}", place.prefix));
            }
            Ok(object) => {
                let state = match object {
                    Some(_) => ClaimState::Good,
                    None => ClaimState::NotOurs,
                };
                if let Some(key) = key_of(kind, value) {
                    self.claim((kind, key), value, place, state, object);
                }
            }
        }
    }

    fn invalid(&mut self, kind: Kind, value: &Value, place: &Place, reason: String) {
        let Some(key) = key_of(kind, value) else {
            return self.opaque(place, &format!("{kind}: {reason}"));
        };
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            document: place.document,
            line: place.line,
            object: Some((kind, key.clone())),
            message: reason.clone(),
        });
        self.claim((kind, key), value, place, ClaimState::Invalid(reason), None);
    }

    /// Enters an object; the first in a file counts.
    fn claim(
        &mut self,
        id: Id,
        value: &Value,
        place: &Place,
        state: ClaimState,
        object: Option<Object>,
    ) {
        if let Some((first, _)) = self.parsed.items.get(&id) {
            let message = format!("is in document {} already, which counts", first.document);
            self.parsed.problems.push(Problem {
                file: self.file.to_owned(),
                document: place.document,
                line: place.line,
                object: Some(id),
                message: format!("{message}: remove one"),
            });
            return;
        }
        let claim = Claim {
            document: place.document,
            line: place.line,
            digest: digest(value),
            state,
        };
        self.parsed.items.insert(id, (claim, object));
    }

    /// Something that does not say which object it is.
    fn opaque(&mut self, place: &Place, message: &str) {
        self.parsed.hides_objects = true;
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            document: place.document,
            line: place.line,
            object: None,
            message: format!("{}{message}", place.prefix),
        });
    }
}

/// The kind, `None` for one that is none of ours, or the version to write where the
/// group is right and the version is not.
fn kind_of(api_version: &str, kind: &str) -> Result<Option<Kind>, (Kind, &'static str)> {
    let (kind, wanted) = match kind {
        "Namespace" => (Kind::Namespace, "v1"),
        "Node" => (Kind::Node, "v1"),
        "Pod" => (Kind::Pod, "v1"),
        "Service" => (Kind::Service, "v1"),
        "EndpointSlice" => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
        "NetworkPolicy" => (Kind::NetworkPolicy, "networking.k8s.io/v1"),
        "ClusterNetworkPolicy" => (
            Kind::ClusterNetworkPolicy,
            "policy.networking.k8s.io/v1alpha2",
        ),
        "ServiceCIDR" => (Kind::ServiceCidr, "networking.k8s.io/v1"),
        _ => return Ok(None),
    };
    let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
    match api_version {
        version if version == wanted => Ok(Some(kind)),
        version if group(version) == group(wanted) => Err((kind, wanted)),
        _ => Ok(None),
    }
}

/// The key of an object that may be wrong in everything else.
fn key_of(kind: Kind, value: &Value) -> Option<ObjectKey> {
    let metadata = value.get("metadata")?;
    let field = |name: &str| text(metadata.get(name)).map(str::to_owned);
    let metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: field("name"),
        namespace: field("namespace"),
        ..Default::default()
    };
    object_key(kind, &metadata).ok()
}

/// Reads and converts one object.
fn typed<K>(value: &Value) -> Result<Option<Object>, String>
where
    K: Convert + DeserializeOwned + Serialize,
{
    let object: K = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => format!("{}: correct it", error.inner()),
            _ => format!("{path}: {}: correct it", error.inner()),
        }
    })?;
    // A policy with a field that we do not know, be it misspelt or newer than we are,
    // says something that we would not do. ClusterNetworkPolicy sees to that itself. For the
    // other kinds a newer field is harmless.
    if K::KIND == Kind::NetworkPolicy {
        let known = serde_json::to_value(&object).map_err(|e| e.to_string())?;
        if let Some(path) = unknown_field(value, &known) {
            return Err(format!(
                "{path} is no field of NetworkPolicy: correct its spelling or place"
            ));
        }
    }
    object.convert().map_err(|error| error.to_string())
}

/// Path of a field of `written` that is not in `known`, which was made from it.
fn unknown_field(written: &Value, known: &Value) -> Option<String> {
    fn join(head: &str, tail: &str) -> String {
        let dot = if tail.starts_with('[') { "" } else { "." };
        format!("{head}{dot}{tail}")
    }
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            written
                .iter()
                .find_map(|(name, value)| match known.get(name) {
                    None if value.is_null() => None,
                    None => Some(name.clone()),
                    Some(known) => unknown_field(value, known).map(|path| join(name, &path)),
                })
        }
        (Value::Array(written), Value::Array(known)) => {
            let pairs = written.iter().zip(known).enumerate();
            pairs.into_iter().find_map(|(i, (written, known))| {
                unknown_field(written, known).map(|path| join(&format!("[{i}]"), &path))
            })
        }
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    value
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// The documents of a YAML stream with the line each begins at, counted from 1.
///
/// A line that begins with `---` and a blank always separates documents (YAML 1.2.2,
/// 9.1.2 and c-forbidden), even inside a scalar, so a document that does not parse
/// cannot swallow the next one. Parts without content (comments, directives) are no
/// documents.
fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let is_marker = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut starts = vec![(1, 0)];
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if is_marker(line) && offset > 0 {
            starts.push((number, offset));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, offset)| *offset);
    let ends: Vec<usize> = ends.chain([text.len()]).collect();
    starts
        .iter()
        .zip(ends)
        .filter_map(|((line, start), end)| Some((*line, text.get(*start..end)?)))
        .filter(|(_, chunk)| has_content(chunk))
        .collect()
}

fn has_content(chunk: &str) -> bool {
    chunk.lines().any(is_content)
}

fn lines_before_content(chunk: &str) -> usize {
    chunk.lines().take_while(|line| !is_content(line)).count()
}

/// Whether a line has more than comments, directives and markers.
fn is_content(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}');
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !(line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}

/// Parses one document; an error comes with its line, counted from 0.
///
/// The limits on size are lifted, since the files are the administrator's own and one List
/// may hold a whole cluster. Those on aliases and depth stay.
fn parse_yaml(chunk: &str) -> Result<Value, (usize, String)> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_str_with_options(chunk, options).map_err(|error: serde_saphyr::Error| {
        // Only the message: the library counts lines from the start of this document.
        let message = UserMessageFormatter.format_message(error.without_snippet());
        let message = message.replace(char::is_control, " ");
        match error.location() {
            None => (0, message),
            Some(at) => {
                let line = usize::try_from(at.line()).unwrap_or(1).saturating_sub(1);
                (line, format!("{message} (column {})", at.column()))
            }
        }
    })
}
