//! Durations as they are written in the file and on the command line.

use std::time::Duration;

/// `500ms`, `10s`, `2m`, `24h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no duration: write 500ms, 10s or 2m"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        unit => Err(format!(
            "unit {unit:?} of {text:?} is unknown: use ms, s, m or h"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("3", 3_000),
            ("2h", 7_200_000),
        ] {
            let read = Duration::from_millis(milliseconds);
            assert_eq!(duration(text), Ok(read), "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "10d",
            "1 s",
            "99999999999999999999s",
        ] {
            let error = duration(text).expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
