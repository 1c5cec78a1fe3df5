//! Which lines of a journal count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead};

use proxy::model::ObjectKey;

use super::Span;
use crate::event::Kind;

/// Longest line: an object of the API has 1.5 MiB at most.
const LINE: u64 = 8 << 20;

/// The lines that count.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) objects: BTreeMap<(Kind, ObjectKey), Span>,
}

/// What is wrong with a journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

/// What a line says.
enum Line<'a> {
    All(Kind, usize),
    Put(Kind, ObjectKey, &'a str),
    Gone(Kind, ObjectKey),
}

/// A list that is not complete yet.
struct Listing {
    kind: Kind,
    missing: usize,
    objects: BTreeMap<(Kind, ObjectKey), Span>,
}

impl Replay {
    /// Reads to the end, or to the line that was torn there. A list that was torn does not
    /// count at all.
    pub(super) fn of(mut text: impl BufRead, header: &str) -> io::Result<Result<Self, Damage>> {
        let mut replay = Self::default();
        let mut listed = BTreeSet::new();
        let mut listing: Option<Listing> = None;
        let (mut at, mut number) = (0, 0);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let length = io::Read::take(&mut text, LINE).read_until(b'\n', &mut bytes)?;
            let start = at;
            at += length as u64;
            number += 1;
            let damage = |reason: String| Damage {
                line: number,
                reason,
            };
            if bytes.pop() != Some(b'\n') {
                if length as u64 == LINE {
                    return Ok(Err(damage("it is too long".into())));
                }
                let missing = Kind::ALL.into_iter().find(|kind| !listed.contains(kind));
                return Ok(match missing {
                    None => Ok(replay),
                    Some(kind) => Err(damage(format!("it ends without a list of {kind}"))),
                });
            }
            let Ok(line) = std::str::from_utf8(&bytes) else {
                return Ok(Err(damage("it is no text".into())));
            };
            if number == 1 {
                if line != header {
                    return Ok(Err(damage(format!("{line:?} is not {header:?}"))));
                }
                continue;
            }
            let Some(parsed) = parse(line) else {
                return Ok(Err(damage("it is no line of a journal".into())));
            };
            match (parsed, &mut listing) {
                (Line::All(kind, missing), None) => {
                    listing = Some(Listing {
                        kind,
                        missing,
                        objects: BTreeMap::new(),
                    });
                }
                (Line::Put(kind, key, json), into) => {
                    let span = Span {
                        at: start + (line.len() - json.len()) as u64,
                        length: json.len(),
                        line: number,
                    };
                    match into {
                        None => replay.objects.insert((kind, key), span),
                        Some(list) if list.kind == kind => {
                            list.missing -= 1;
                            list.objects.insert((kind, key), span)
                        }
                        Some(list) => {
                            let of = list.kind;
                            return Ok(Err(damage(format!("a {kind} in a list of {of}"))));
                        }
                    };
                }
                (Line::Gone(kind, key), None) => {
                    replay.objects.remove(&(kind, key));
                }
                (Line::All(..) | Line::Gone(..), Some(list)) => {
                    let of = list.kind;
                    return Ok(Err(damage(format!("the list of {of} is not complete"))));
                }
            }
            if let Some(list) = listing.take_if(|list| list.missing == 0) {
                replay.objects.retain(|(kind, _), _| *kind != list.kind);
                replay.objects.extend(list.objects);
                listed.insert(list.kind);
            }
        }
    }
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (sign, rest) = line.split_once(' ')?;
    let (kind, rest) = rest.split_once(' ')?;
    let kind = Kind::ALL.into_iter().find(|of| of.to_string() == kind)?;
    let key = |text: &str| {
        let (namespace, name) = text.split_once('/')?;
        Some(ObjectKey::new(namespace, name))
    };
    match sign {
        "=" => Some(Line::All(kind, rest.parse().ok()?)),
        "-" => Some(Line::Gone(kind, key(rest)?)),
        "+" => {
            let (of, json) = rest.split_once(' ')?;
            Some(Line::Put(kind, key(of)?, json))
        }
        _ => None,
    }
}
