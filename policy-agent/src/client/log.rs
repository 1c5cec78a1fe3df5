//! `log`: the verdict log of a running agent.

use std::io::{BufRead, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{ANSWER, connect};
use crate::admin::Query;
use crate::args::{Client, Output};
use crate::verdict_log::{News, Record, Selection};

/// Prints the last records and, where it follows, those to come.
///
/// # Errors
/// Where the agent is away, has no log, or ends.
pub fn log(client: &Client, selection: Selection, follow: bool) -> anyhow::Result<ExitCode> {
    let query = Query::Log { selection, follow };
    // The next record may be long in coming.
    let mut answers = connect(&client.socket, &query, (!follow).then_some(ANSWER))?;
    let mut out = std::io::stdout().lock();
    let mut line = String::new();
    loop {
        line.clear();
        if answers
            .read_line(&mut line)
            .context("the agent does not answer")?
            == 0
        {
            bail!("the agent has ended");
        }
        let news: News = serde_json::from_str(&line).context("the agent's answer is unknown")?;
        let text = match news {
            News::Record(json) => match client.output {
                Output::Json => json,
                Output::Text => serde_json::from_str::<Record>(&json)
                    .context("the agent's record is unknown: it is of another version")?
                    .to_string(),
            },
            News::Missed(count) => {
                eprintln!("{count} records left out: too many to print");
                continue;
            }
            News::End => return Ok(ExitCode::SUCCESS),
            News::Error(error) => bail!(error),
        };
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => {}
            // Whoever reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error).context("cannot print"),
        }
    }
}
