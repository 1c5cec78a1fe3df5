//! The agent's socket: JSON lines from the plugin and from the command line.

mod follow;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use dataplane::attachment::{Request, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::health::Health;
use crate::plan::Proposal;
use crate::runtime::{Call, Mail};
use crate::verdict_log::{Feed, Selection};
use crate::{explain, inspect};

/// A request is a line of at most this many bytes.
const LINE_MAX: u64 = 8 << 20;
/// How long a DETACH is answered after at the latest: before the plugin stops listening.
const DETACH: Duration = Duration::from_secs(3);

/// What the command line asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Query {
    /// Answered when everything that is visible now is in the kernel.
    Wait {
        /// Milliseconds to wait at most.
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
    /// The state in one document.
    Status,
    /// The Services.
    Services,
    /// The policies.
    Policies,
    /// The kernel against the desired state.
    Verify,
    /// What becomes of a connection, and why.
    Explain(explain::query::Query),
    /// Who reaches whom in a namespace.
    Matrix {
        /// The namespace.
        namespace: String,
    },
    /// What is probably not meant as it is written.
    Lint {
        /// Of policies in this namespace only.
        namespace: Option<String>,
    },
    /// What manifests would change.
    Plan(Proposal),
    /// Denied packets; answered by any number of lines, see [`News`](crate::verdict_log::News).
    Log {
        /// Which of them.
        #[serde(flatten)]
        selection: Selection,
        /// Those to come, too.
        follow: bool,
    },
}

/// What the command line is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The result, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Else why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers on it.
    #[error("another agent is running on {}: stop it first, or give this one another --socket", .0.display())]
    InUse(PathBuf),
    /// The path cannot be used.
    #[error("cannot listen on {}: make its folder writable or give another --socket", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The listening socket. Its file stays when the agent ends: to the plugin a socket that
/// nobody answers on means "an agent is to come", no socket means "there never was one".
pub struct Socket {
    listener: UnixListener,
    feed: Feed,
}

impl Socket {
    /// Listens on the path; only root may connect. A socket that a dead agent has left is
    /// replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        if path.exists() {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(SocketError::InUse(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(io)?;
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self {
            listener,
            feed: Feed::new(false),
        })
    }

    /// Serves the log of this feed, too.
    #[must_use]
    pub fn with_feed(self, feed: Feed) -> Self {
        Self { feed, ..self }
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, owner: Sender<Mail>, health: Health) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (owner, health) = (owner.clone(), health.clone());
                        connections.spawn(serve(stream, owner, health, self.feed.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: let others end.
                        tracing::error!(%error, "cannot accept on the socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn serve(stream: UnixStream, owner: Sender<Mail>, health: Health, feed: Feed) {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if let Ok(Query::Log {
            selection,
            follow: follows,
        }) = serde_json::from_slice(&line)
        {
            let told = follow::follow(&feed, &selection, follows, &mut reader, &mut write);
            // Nothing more can be told to somebody who is gone.
            drop(told.await);
            return;
        }
        let mut answer = respond(&line, &owner, &health).await.to_string();
        answer.push('\n');
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn respond(line: &[u8], owner: &Sender<Mail>, health: &Health) -> Value {
    let parsed: Result<Value, _> = serde_json::from_slice(line);
    let value = match parsed {
        Ok(value) => value,
        Err(error) => return failure(format!("the request is no JSON line: {error}")),
    };
    if let Ok(request) = serde_json::from_value::<Request>(value.clone()) {
        return to_value(&plugin(request, owner, health).await);
    }
    match serde_json::from_value::<Query>(value) {
        Ok(query) => to_value(&command(query, owner).await),
        Err(error) => failure(format!("unknown request: {error}")),
    }
}

async fn plugin(request: Request, owner: &Sender<Mail>, health: &Health) -> Response {
    let result = match request {
        Request::Attach {
            attachment,
            timeout_ms,
        } => {
            let deadline = Instant::now() + Duration::from_millis(timeout_ms);
            let programmed = ask(owner, |reply| Call::Attach {
                attachment,
                deadline,
                reply,
            });
            programmed.await.flatten().map(Some)
        }
        Request::Detach { attachment: key } => {
            let deadline = Instant::now() + DETACH;
            let detached = ask(owner, |reply| Call::Detach {
                key,
                deadline,
                reply,
            });
            detached.await.flatten().map(|_| None)
        }
        Request::Ready => health.not_ready().map_or(Ok(None), Err),
    };
    match result {
        Ok(programmed) => Response {
            ok: true,
            programmed,
            error: None,
        },
        Err(error) => Response {
            ok: false,
            programmed: None,
            error: Some(error),
        },
    }
}

async fn command(query: Query, owner: &Sender<Mail>) -> Answer {
    let result = match query {
        Query::Wait { timeout_ms } => {
            let deadline = Instant::now() + Duration::from_millis(timeout_ms);
            let done = ask(owner, |reply| Call::Wait { deadline, reply })
                .await
                .flatten();
            done.map(|_| Value::Null)
        }
        Query::Status => ask(owner, Call::Status)
            .await
            .map(|status| to_value(&status)),
        Query::Services => ask(owner, Call::Services).await.map(|list| to_value(&list)),
        Query::Policies => ask(owner, Call::Policies).await.map(|list| to_value(&list)),
        Query::Explain(query) => inspect::explanation(query, owner).await,
        Query::Matrix { namespace } => inspect::connectivity(namespace, owner).await,
        Query::Lint { namespace } => inspect::findings(namespace, owner).await,
        Query::Plan(proposal) => inspect::proposal(proposal, owner).await,
        Query::Log { .. } => Err("the log is followed on a connection of its own".into()),
        Query::Verify => {
            let differences = ask(owner, Call::Verify).await.flatten();
            differences.map(|lines| to_value(&lines))
        }
    };
    match result {
        Ok(value) => Answer {
            result: Some(value),
            error: None,
        },
        Err(error) => Answer {
            result: None,
            error: Some(error),
        },
    }
}

pub(crate) async fn ask<T>(
    owner: &Sender<Mail>,
    call: impl FnOnce(oneshot::Sender<T>) -> Call,
) -> Result<T, String> {
    let gone = || "the agent is ending".to_owned();
    let (reply, answer) = oneshot::channel();
    owner.send(Mail::Call(call(reply))).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

fn failure(error: String) -> Value {
    to_value(&Response {
        ok: false,
        programmed: None,
        error: Some(error),
    })
}

pub(crate) fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("maps with text keys only")
}

#[cfg(test)]
mod tests;
