//! A client of the pods' servers.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A connection that is made when it is needed, and made again after some requests or an error.
#[derive(Debug)]
pub(crate) struct Connection {
    target: SocketAddr,
    limit: Duration,
    kept: u32,
    stream: Option<(BufReader<TcpStream>, u32)>,
}

impl Connection {
    /// To `target`, for `kept` requests; each may take until `limit`.
    pub(crate) const fn new(target: SocketAddr, limit: Duration, kept: u32) -> Self {
        Self {
            target,
            limit,
            kept,
            stream: None,
        }
    }

    /// Asks for one page: the body, which is the name of the pod that answers.
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        let mut names = Vec::new();
        self.ask_together(1, &mut names)?;
        Ok(names.remove(0))
    }

    /// Asks so often without waiting for the answers, which go to `names` as far as there are any;
    /// `kept` is a multiple.
    pub(crate) fn ask_together(&mut self, count: u32, names: &mut Vec<String>) -> io::Result<()> {
        let started = Instant::now();
        let (mut stream, asked) = match self.stream.take() {
            Some(open) => open,
            None => {
                let stream = TcpStream::connect_timeout(&self.target, self.limit)?;
                // They are one segment.
                stream.set_nodelay(true)?;
                (BufReader::new(stream), 0)
            }
        };
        let asked = asked + count;
        let is_last = asked >= self.kept;
        let left = self.limit.saturating_sub(started.elapsed());
        let socket = stream.get_mut();
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut requests = String::new();
        for number in 1..=count {
            // The server closes, so that this side's ports are free again at once.
            let connection = if is_last && number == count {
                "close"
            } else {
                "keep-alive"
            };
            let target = self.target;
            let request = format!(
                "GET /hostname HTTP/1.1\r\nHost: {target}\r\nConnection: {connection}\r\n\r\n"
            );
            requests.push_str(&request);
        }
        socket.write_all(requests.as_bytes())?;
        for _ in 0..count {
            names.push(answer(&mut stream)?);
        }
        if is_last {
            // Until it has.
            stream.read_to_end(&mut Vec::new())?;
        } else {
            self.stream = Some((stream, asked));
        }
        Ok(())
    }
}

/// Reads one answer.
fn answer(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut head = String::new();
    let mut length = None;
    loop {
        let start = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(io::Error::other(format!("closed after {head:?}")));
        }
        let line = head[start..].trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let (Some(length), true) = (length, head.contains(" 200 ")) else {
        return Err(io::Error::other(format!("answered {head:?}")));
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}
