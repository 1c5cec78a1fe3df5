//! The file of `--config`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Settings that few need to change. All have defaults.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Bridges behind which unknown addresses are closed even before the first attachment;
    /// `[cbr0]` by default.
    pub bridges: Vec<String>,
    /// Format of the log on standard error.
    pub log_format: LogFormat,
}

/// Format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON document a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridges: vec!["cbr0".into()],
            log_format: LogFormat::Text,
        }
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("config file {}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// Where it cannot be read or has an unknown key or a wrong value; the reason names it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |reason: String| ConfigError {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Self =
            serde_saphyr::from_str(&text).map_err(|source| error(source.to_string()))?;
        if let Some(name) = config
            .bridges
            .iter()
            .find(|name| name.is_empty() || name.len() > 15)
        {
            return Err(error(format!(
                "bridges: {name:?} is no interface name, which has 1 to 15 bytes"
            )));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        Config::read(file.path())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(read("").expect("fine"), Config::default());
        assert_eq!(read("bridges: [br7]").expect("fine").bridges, ["br7"]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = read("bridge: cbr0").expect_err("misspelt").to_string();
        assert!(error.contains("bridge"), "{error}");
        let error = read("bridges: [a-name-that-is-too-long]").expect_err("too long");
        assert!(
            error.to_string().contains("a-name-that-is-too-long"),
            "{error}"
        );
    }
}
