//! The conversation with the agent.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::attachment::{Request, Response};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::stat::stat;
use nix::sys::time::TimeVal;

use crate::spec::Policy;

/// How long the agent may wait for a pod's object and policies. Then the pod
/// starts with its port closed, which opens when they are known.
pub const PROGRAM_TIMEOUT: Duration = Duration::from_secs(2);

/// How long we wait for any answer beyond what the agent may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("the agent at {} is not there: {source}: start trammel-agent, or set \"policy\": \"optional\" to start pods without it", socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the agent at {} does not answer: {source}", socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says is no answer.
    #[error("the agent at {} answers nonsense: {source}", socket.display())]
    Nonsense {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It says no.
    #[error("the agent refuses: {0}")]
    Refused(String),
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    socket: PathBuf,
}

impl Agent {
    /// Connects as the policy demands. `None`: there is no agent, and that is
    /// all right.
    pub fn connect(path: &Path, policy: Policy) -> Result<Option<Self>, AgentError> {
        match connect_within(path, ANSWER_TIMEOUT) {
            Ok(stream) => Ok(Some(Self {
                stream,
                socket: path.to_owned(),
            })),
            Err(errno) => match policy {
                Policy::Optional => Ok(None),
                // No socket: no agent was ever installed here.
                Policy::Automatic if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
                // Its backlog is full.
                Policy::Automatic | Policy::Required if errno == Errno::EAGAIN => {
                    Err(AgentError::Silent {
                        socket: path.to_owned(),
                        source: ErrorKind::TimedOut.into(),
                    })
                }
                Policy::Automatic | Policy::Required => Err(AgentError::Away {
                    socket: path.to_owned(),
                    source: errno.into(),
                }),
            },
        }
    }

    /// Connects to the agent that is there. `None`: nobody listens. One that does not take the
    /// connection is an error, for it may go on some time.
    pub fn find(path: &Path) -> Result<Option<Self>, AgentError> {
        match Self::connect(path, Policy::Required) {
            Ok(agent) => Ok(agent),
            Err(AgentError::Away { source, .. })
                if matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request. Its answer is read by [`answer`](Self::answer), and the
    /// time between the two is ours.
    pub fn send(&mut self, request: &Request) -> Result<(), AgentError> {
        let mut line = serde_json::to_vec(request).map_err(|source| AgentError::Nonsense {
            socket: self.socket.clone(),
            source,
        })?;
        line.push(b'\n');
        let sent = self.stream.write_all(&line);
        sent.map_err(|source| self.silent(source))
    }

    /// Waits for the answer to the last request, for at most `grace` more than
    /// any answer may take.
    pub fn answer(&mut self, grace: Duration) -> Result<Response, AgentError> {
        let timeout = Some(ANSWER_TIMEOUT + grace);
        let mut line = Vec::new();
        let read = self.stream.set_read_timeout(timeout).and_then(|()| {
            // One answer per request: nothing is lost with the reader's buffer.
            BufReader::new(&self.stream).read_until(b'\n', &mut line)
        });
        match read {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => return Err(self.silent(ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(self.silent(ErrorKind::TimedOut.into()));
            }
            Err(error) => return Err(self.silent(error)),
        }
        let response: Response =
            serde_json::from_slice(&line).map_err(|source| AgentError::Nonsense {
                socket: self.socket.clone(),
                source,
            })?;
        if response.ok {
            Ok(response)
        } else {
            let reason = response
                .error
                .unwrap_or_else(|| "it does not say why".to_owned());
            Err(AgentError::Refused(reason))
        }
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, request: &Request) -> Result<Response, AgentError> {
        self.send(request)?;
        self.answer(Duration::ZERO)
    }

    fn silent(&self, source: io::Error) -> AgentError {
        AgentError::Silent {
            socket: self.socket.clone(),
            source,
        }
    }
}

/// Connects with a timeout, which also holds for later writes. A plain connect
/// waits for ever where the other side has stopped and its backlog is full.
fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, Errno> {
    // Where there is no agent, a look costs a tenth of the attempt.
    stat(path)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(seconds, 0))?;
    let stream = UnixStream::from(fd);
    let address = UnixAddr::new(path)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn socket_with(
        answer: &'static str,
    ) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            line
        });
        (dir, path, server)
    }

    fn ask(answer: &'static str) -> (Result<Response, AgentError>, String) {
        let (_dir, path, server) = socket_with(answer);
        let mut agent = Agent::connect(&path, Policy::Required).unwrap().unwrap();
        let response = agent.ask(&Request::Ready);
        (response, server.join().unwrap())
    }

    #[test]
    fn a_request_is_one_line_and_so_is_its_answer() {
        let (response, line) = ask("{\"ok\":true,\"programmed\":true,\"new\":1}\n");
        assert_eq!(response.unwrap().programmed, Some(true));
        assert_eq!(line, "{\"verb\":\"ready\"}\n");
    }

    #[test]
    fn a_refusal_nonsense_and_silence_are_told_apart() {
        let refused = ask("{\"ok\":false,\"error\":\"no such pod\"}\n")
            .0
            .unwrap_err();
        assert_eq!(refused.to_string(), "the agent refuses: no such pod");
        assert!(matches!(ask("what?\n").0, Err(AgentError::Nonsense { .. })));
        assert!(matches!(
            ask("{\"ok\":tr").0,
            Err(AgentError::Silent { .. })
        ));
    }

    #[test]
    fn an_absent_agent_is_fine_unless_it_is_required_or_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let connect = |policy| Agent::connect(&path, policy).map(|agent| agent.is_some());
        assert!(!connect(Policy::Optional).unwrap());
        assert!(!connect(Policy::Automatic).unwrap());
        assert!(connect(Policy::Required).is_err());
        drop(UnixListener::bind(&path).unwrap());
        assert!(!connect(Policy::Optional).unwrap());
        assert!(connect(Policy::Automatic).is_err());
        let text = connect(Policy::Required).unwrap_err().to_string();
        assert!(text.contains("agent.sock"), "{text}");
    }
}
