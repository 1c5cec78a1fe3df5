//! Running programs: to their end with a limit, or beside the test until it
//! lets go of them.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;

/// How long [`run`] waits for a program.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long a wait may take to see that a signal has come.
const INTERRUPT_POLL: Duration = Duration::from_millis(100);

/// What a program that has ended said.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From before the fork to its end.
    pub took: Duration,
}

/// Runs a program that has to succeed and returns its standard output. The
/// error holds the command line, the status and both outputs.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command, b"", LIMIT)?;
    if !output.status.success() {
        bail!("{}: {}", describe(command), complaint(&output));
    }
    Ok(output.stdout)
}

/// Runs a program to its end, `input` as its standard input. An error only if
/// it cannot be started or outlives `limit`, when it is killed.
pub fn output(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", describe(command)))?;

    let (done, ended) = mpsc::channel();
    let stdout = drain(child.stdout.take(), done.clone());
    let stderr = drain(child.stderr.take(), done);
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        thread::spawn(move || {
            // A program that does not read its input closes the pipe: not an error.
            stdin.write_all(&input).ok();
        });
    }

    if let Err(error) = wait_for_end(&ended, started + limit) {
        child.kill().ok();
        child.wait().ok();
        return Err(error.context(describe(command)));
    }
    let status = child.wait().context("cannot wait for a child")?;
    let took = started.elapsed();
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        let bytes = reader.join().expect("readers of a pipe do not panic");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Output {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
        took,
    })
}

/// The command line, to be pasted into a shell.
pub fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words
        .into_iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Exit status and what was said about it, on one line where possible.
pub fn complaint(output: &Output) -> String {
    let said = [output.stderr.trim(), output.stdout.trim()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    match said.as_str() {
        "" => output.status.to_string(),
        said => format!("{said} ({})", output.status),
    }
}

/// Reads a pipe to its end in a thread of its own and says so on `done`.
fn drain<R: Read + Send + 'static>(
    pipe: Option<R>,
    done: mpsc::Sender<()>,
) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is all there is to show.
            pipe.read_to_end(&mut bytes).ok();
        }
        // Nobody listens any more after a time-out.
        done.send(()).ok();
        bytes
    })
}

/// Waits until both pipes are closed.
fn wait_for_end(ended: &mpsc::Receiver<()>, deadline: Instant) -> Result<()> {
    let mut open = 2;
    while open > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("did not end in time and was killed");
        }
        match ended.recv_timeout(left.min(INTERRUPT_POLL)) {
            Ok(()) => open -= 1,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => interrupt::check()?,
        }
    }
    Ok(())
}

/// A program that runs until it is told to stop, its output in a file. Killed
/// when dropped, and by the kernel when the thread that started it ends,
/// however that happens.
#[derive(Debug)]
pub struct Background {
    child: Child,
}

impl Background {
    /// Starts a program; both its outputs are appended to `log`.
    pub fn spawn(command: &Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot duplicate a log file")?)
            .stderr(file);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => tied.env(key, value),
                None => tied.env_remove(key),
            };
        }
        let child = tied
            .spawn()
            .with_context(|| format!("cannot run {}", describe(&tied)))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot wait for a child")
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("pid out of range")?;
        kill(Pid::from_raw(pid), signal).context("cannot signal a child")
    }

    /// Sends it `signal` and waits for its end, at most `limit`.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status()? {
            return Ok(status);
        }
        self.signal(signal)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("pid {} does not end after {signal}", self.pid());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
