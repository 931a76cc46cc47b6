//! Samples from trace files.

use std::path::{Path, PathBuf};

use super::file::{self, TraceFile, is_trace_name};
use super::windows::Windows;
use super::write::difference;
use crate::learn::LearnError;
use crate::learn::compact::CompactRows;
use crate::learn::samples::{SampleBatch, SampleInfo, SampleSource};
use crate::sparsity::{ModelIdentity, Scores};
use crate::{Error, Result};

/// A trace on disk. Training on it is training on the text that it was made of, bit for bit.
pub struct TraceSource {
    info: SampleInfo,
    files: Vec<(PathBuf, TraceFile)>,
    /// For each window the file that it is in.
    places: Vec<usize>,
    windows: Windows,
    rows: CompactRows,
}

impl TraceSource {
    /// Opens the trace in `directory`, which must be of this model and complete.
    ///
    /// # Errors
    /// [`Error::Io`]; [`LearnError::NoTrace`] if there is none; [`LearnError::TraceIncomplete`] names the files that are missing;
    /// [`Error::OtherModel`]; [`LearnError::OtherTrace`] if the files are not all of one trace; those of a broken file.
    pub fn open(directory: &Path, model: &ModelIdentity) -> Result<Self> {
        let failed = |source| Error::Io { action: "read", path: directory.to_owned(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().filter(|name| is_trace_name(name)).map(str::to_owned));
        }
        names.sort_unstable();
        let mut files: Vec<(PathBuf, TraceFile)> = Vec::with_capacity(names.len());
        for name in &names {
            let path = directory.join(name);
            let file = TraceFile::open(&path)?;
            let found = &file.description.samples.model;
            if found != model {
                let other = Error::OtherModel { found: found.clone(), expected: model.clone() };
                return Err(other.in_file(&path));
            }
            if let Some((_, first)) = files.first() {
                let expected = file::Description { file: file.description.file, ..first.description.clone() };
                if file.description != expected {
                    return Err(
                        LearnError::OtherTrace { path, reason: difference(&file.description, &expected) }.into()
                    );
                }
            }
            files.push((path, file));
        }
        let Some((_, first)) = files.first() else {
            return Err(LearnError::NoTrace { path: directory.to_owned() }.into());
        };
        let (info, of) = (first.description.samples.clone(), first.description.of);
        files.sort_by_key(|(_, file)| file.description.file);
        let missing: Vec<usize> =
            (0..of).filter(|i| files.binary_search_by_key(i, |(_, f)| f.description.file).is_err()).collect();
        if !missing.is_empty() || files.len() != of {
            return Err(LearnError::TraceIncomplete { path: directory.to_owned(), missing, of }.into());
        }
        let places = files.iter().enumerate().flat_map(|(i, (_, f))| std::iter::repeat_n(i, f.windows.len())).collect();
        let all = files.iter().flat_map(|(_, f)| f.windows.iter().copied()).collect();
        let (windows, rows) = (Windows { all, next: 0 }, CompactRows::new(&info));
        Ok(TraceSource { info, files, places, windows, rows })
    }

    /// The mean importance of every unit over all samples: the scores of a static policy. Layer 0 has zeros.
    ///
    /// # Errors
    /// Those of a broken file.
    pub fn scores(&mut self) -> Result<Scores> {
        let units = self.info.units();
        let mut scores = Scores::zeros(units);
        let mut sums = [vec![0.0_f64; scores.heads.len()], vec![0.0_f64; scores.neurons.len()]];
        let mut batch = SampleBatch::default();
        let mut rows = 0;
        self.seek(0);
        while self.next(&|_| true, &mut batch)? {
            rows += batch.rows;
            for (sums, values) in sums.iter_mut().zip([&batch.heads, &batch.neurons]) {
                let first = sums.len() / units.layers;
                let targets = &mut sums[first..];
                for row in values.chunks_exact(targets.len()) {
                    targets.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
                }
            }
        }
        self.seek(0);
        for (to, sums) in [&mut scores.heads, &mut scores.neurons].into_iter().zip(sums) {
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to = (sum / rows.max(1) as f64) as f32);
        }
        Ok(scores)
    }
}

impl SampleSource for TraceSource {
    fn info(&self) -> &SampleInfo {
        &self.info
    }

    fn rows(&self, wanted: &dyn Fn(u32) -> bool) -> u64 {
        self.windows.rows(wanted)
    }

    fn next(&mut self, wanted: &dyn Fn(u32) -> bool, batch: &mut SampleBatch) -> Result<bool> {
        self.rows.clear();
        let taken = self.windows.take(wanted);
        if let Some(index) = taken {
            let (path, file) = &self.files[self.places[index]];
            file.read(self.windows.all[index], &mut self.rows).map_err(|e| e.in_file(path))?;
        }
        batch.resize(&self.info, self.rows.rows);
        batch.documents.fill(taken.map_or(0, |index| self.windows.all[index].document));
        for (to, from) in batch.inputs.iter_mut().zip(&self.rows.inputs) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
        }
        self.rows.heads.decode(&mut batch.heads);
        self.rows.neurons.decode(&mut batch.neurons);
        Ok(taken.is_some())
    }

    fn position(&self) -> u64 {
        self.windows.next as u64
    }

    fn seek(&mut self, position: u64) {
        self.windows.seek(position);
    }
}
