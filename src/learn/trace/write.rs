//! Writing a trace: many files, each of which is there whole or not at all.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use super::file::{self, Description, TraceFile};
use super::source::TextSource;
use super::windows::Window;
use crate::learn::LearnError;
use crate::learn::compact::CompactRows;
use crate::learn::samples::{SampleBatch, SampleSource};
use crate::{Error, Result};

/// Samples of one file take about this many bytes.
const FILE_BYTES: usize = 64 << 20;

/// A machine's share of the work: it writes files `index`, `index + of`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// Machines, at least 1.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { index: 0, of: 1 }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
        match parts {
            Some((k, of)) if (1..=of).contains(&k) => Ok(Shard { index: k - 1, of }),
            _ => Err(LearnError::UnknownShard { found: text.to_owned() }.into()),
        }
    }
}

/// What writing a trace came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TraceReport {
    /// Files of the whole trace.
    pub files: usize,
    /// Files written now.
    pub written: usize,
    /// Files of this shard that were there already.
    pub found: usize,
    /// Samples read now.
    pub tokens: u64,
    /// Bytes written now.
    pub bytes: u64,
}

/// Writes the samples of a text into `directory`, or this shard's part of them. Files that are there already, from a run that
/// was stopped, are kept; the files of all shards in one folder are the trace. `progress(tokens done, of all)` may stop the work.
///
/// # Errors
/// [`LearnError::OtherTrace`] if there are files of another trace; those of the source; [`Error::Io`] or [`Error::Weights`] if
/// files cannot be written; [`Error::Interrupted`].
pub fn write_trace(
    source: &mut TextSource<'_>,
    directory: &Path,
    shard: Shard,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<TraceReport> {
    let rows = (FILE_BYTES / CompactRows::row_bytes(source.info()).max(1)).max(1);
    write_files(source, directory, shard, rows, progress)
}

/// [`write_trace`] with at most `most` samples in a file that has several windows.
pub(super) fn write_files(
    source: &mut TextSource<'_>,
    directory: &Path,
    shard: Shard,
    most: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<TraceReport> {
    std::fs::create_dir_all(directory).map_err(|e| Error::Io {
        action: "create folder",
        path: directory.to_owned(),
        source: e,
    })?;
    let info = source.info().clone();
    let windows = source.windows().to_vec();
    let files = cut(&windows, most);
    let text = source.text_hash();
    let mine = || files.iter().enumerate().filter(|(index, _)| index % shard.of == shard.index);
    let rows = |range: &Range<usize>| windows[range.clone()].iter().map(|w| w.len as u64).sum::<u64>();
    let all: u64 = mine().map(|(_, range)| rows(range)).sum();
    let mut report = TraceReport { files: files.len(), ..TraceReport::default() };
    let (mut done, mut batch, mut samples) = (0, SampleBatch::default(), CompactRows::new(&info));
    for (index, range) in mine() {
        let path = file::path(directory, index);
        let description = Description {
            version: file::VERSION,
            samples: info.clone(),
            text: text.clone(),
            file: index,
            of: files.len(),
        };
        if path.exists() {
            let found = TraceFile::open(&path)?;
            if found.description != description {
                return Err(
                    LearnError::OtherTrace { path, reason: difference(&found.description, &description) }.into()
                );
            }
            report.found += 1;
            done += rows(range);
            continue;
        }
        samples.clear();
        source.seek(range.start as u64);
        for _ in range.clone() {
            source.next(&|_| true, &mut batch)?;
            samples.extend(source.cpu(), &batch);
            report.tokens += batch.rows as u64;
            done += batch.rows as u64;
            if progress(done, all).is_break() {
                return Err(Error::Interrupted);
            }
        }
        report.bytes += file::write(&path, &description, &windows[range.clone()], &samples)?;
        report.written += 1;
    }
    Ok(report)
}

/// Windows of each file: as many as have at most `most` samples, but at least one.
fn cut(windows: &[Window], most: usize) -> Vec<Range<usize>> {
    let (mut files, mut start, mut rows) = (Vec::new(), 0, 0);
    for (index, window) in windows.iter().enumerate() {
        if index > start && rows + window.len > most {
            files.push(start..index);
            (start, rows) = (index, 0);
        }
        rows += window.len;
    }
    if start < windows.len() {
        files.push(start..windows.len());
    }
    files
}

/// What two descriptions differ in, in words.
pub(super) fn difference(found: &Description, expected: &Description) -> String {
    let (a, b) = (&found.samples, &expected.samples);
    if a.model != b.model {
        return format!("it is of the model {}, and this model is {}", a.model, b.model);
    }
    if a.criterion != b.criterion {
        return format!("its criterion is {}, and here it is {}", a.criterion, b.criterion);
    }
    if (a.input, &a.stations) != (b.input, &b.stations) {
        return format!(
            "its inputs are {:?} after layers {:?}, and here they are {:?} after layers {:?}",
            a.input, a.stations, b.input, b.stations
        );
    }
    if found.text != expected.text || a.data != b.data {
        return format!("it is of other text or windows ({}, and here {})", a.data, b.data);
    }
    format!("it is file {} of {}, and expected was {} of {}", found.file, found.of, expected.file, expected.of)
}
