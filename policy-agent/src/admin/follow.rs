//! Answers that do not end: the verdict log.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;

use super::to_value;
use crate::verdict_log::{Feed, News, Selection};

/// Writes what has been told and, where it is followed, what will be, until the other side
/// says anything or is gone.
///
/// # Errors
/// Where the other side is gone.
pub(super) async fn follow(
    feed: &Feed,
    selection: &Selection,
    follows: bool,
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    if !feed.is_on() {
        let off = "there is no verdict log: start the agent with another --verdict-log than off";
        return tell(write, &News::Error(off.into())).await;
    }
    let (recent, mut live) = feed.follow();
    for told in recent.iter().filter(|told| selection.wants(told)) {
        tell(write, &News::Record(told.json.to_string())).await?;
    }
    if !follows {
        return tell(write, &News::End).await;
    }
    loop {
        let news = tokio::select! {
            told = live.recv() => match told {
                Ok(told) if selection.wants(&told) => News::Record(told.json.to_string()),
                Ok(_) => continue,
                Err(RecvError::Lagged(count)) => News::Missed(count),
                Err(RecvError::Closed) => return tell(write, &News::End).await,
            },
            // A byte or the end.
            _ = read.read_u8() => return Ok(()),
        };
        tell(write, &news).await?;
    }
}

async fn tell(write: &mut (impl AsyncWrite + Unpin), news: &News) -> std::io::Result<()> {
    let mut line = to_value(news).to_string();
    line.push('\n');
    write.write_all(line.as_bytes()).await
}
