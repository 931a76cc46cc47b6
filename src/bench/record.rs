//! Results that are kept, with everything that one needs to judge them later: the machine, the program, the command.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shadowllm_weights::write_atomic;

use super::machine::Host;
use super::report::Report;
use crate::{Error, Result};

#[derive(Serialize)]
struct Record<'a> {
    date: &'a str,
    command: &'a [String],
    host: &'a Host,
    #[serde(flatten)]
    report: &'a Report,
}

/// Writes `DIR/MACHINE/DATE.json` and returns its path.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be made; [`Error::Weights`] if the file cannot be written.
pub(super) fn write(dir: &Path, host: &Host, command: &[String], report: &Report) -> Result<PathBuf> {
    let dir = dir.join(host.slug());
    let date = jiff::fmt::strtime::format("%Y-%m-%dT%H-%M-%S", &jiff::ZonedDateTime::now());
    let date =
        date.map_err(|e| Error::Io { action: "write to", path: dir.clone(), source: std::io::Error::other(e) })?;
    std::fs::create_dir_all(&dir).map_err(|source| Error::Io { action: "create", path: dir.clone(), source })?;
    let path = dir.join(format!("{date}.json"));
    let text = serde_json::to_vec_pretty(&Record { date: &date, command, host, report });
    let text = text.map_err(|error| Error::Io { action: "write", path: path.clone(), source: error.into() })?;
    write_atomic(&path, &text)?;
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    #[test]
    fn a_record_says_where_and_how() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::look();
        let command = ["shadow-bench", "--shape", "tiny"].map(str::to_owned);
        let path = write(dir.path(), &host, &command, &report(&["tiny"], &[0.5])).unwrap();
        assert_eq!(path.parent(), Some(&*dir.path().join(host.slug())));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(record["date"].as_str(), path.file_stem().unwrap().to_str());
        assert_eq!(record["command"], serde_json::json!(command));
        assert_eq!(record["rows"].as_array().unwrap().len(), 3);
        for field in ["host", "machine", "spread", "run"] {
            assert!(!record[field].is_null(), "{field}: {record}");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = write(&file, &host, &command, &report(&["tiny"], &[0.5])).unwrap_err().to_string();
        assert!(error.starts_with("cannot create "), "{error}");
    }
}
