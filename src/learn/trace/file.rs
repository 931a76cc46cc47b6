//! One trace file: the samples of some windows.
//!
//! A safetensors file. Its metadata has one key, `trace`: a JSON object with `version`, `samples` (the fields of [`SampleInfo`]),
//! `text` (a hash of all tokens, windows and their order), `file` and `of` (this is file `file` of `of`, from 0). Of `R` samples in `W` windows, with `n` inputs, it has
//!
//! | tensor | shape, type | what |
//! | --- | --- | --- |
//! | `windows` | `[W, 2]`, U32 | document and number of samples of each window, in order |
//! | `{s}.inputs` | `[R, n]`, F16 | inputs of station `s`, counted from 0 |
//! | `heads` | `[R, L-1, H]`, U8 | importances: `c` stands for `(c / 255)^2` times the scale |
//! | `heads.scale` | `[R, L-1]`, F32 | the largest importance of the layer in this sample |
//! | `neurons`, `neurons.scale` | `[R, L-1, F]`, `[R, L-1]` | the same |

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde::{Deserialize, Serialize};
use shadowllm_weights::write_atomic;

use super::windows::Window;
use crate::learn::LearnError;
use crate::learn::compact::CompactRows;
use crate::learn::samples::SampleInfo;
use crate::sparsity::file::File;
use crate::{Error, Result};

const KEY: &str = "trace";
pub(super) const VERSION: u32 = 1;

/// What a trace file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) version: u32,
    pub(super) samples: SampleInfo,
    /// Hash of the text that the trace is of.
    pub(super) text: String,
    /// Number of this file.
    pub(super) file: usize,
    /// Number of all files.
    pub(super) of: usize,
}

/// An open file, its description, windows and sizes checked.
pub(super) struct TraceFile {
    file: File,
    pub(super) description: Description,
    /// `start` is a row of this file.
    pub(super) windows: Vec<Window>,
    rows: usize,
}

/// Name of file `file` of a trace.
pub(super) fn path(directory: &Path, file: usize) -> PathBuf {
    directory.join(format!("trace-{file:05}.safetensors"))
}

/// Whether a name is that of a trace file.
pub(super) fn is_trace_name(name: &str) -> bool {
    let digits = name.strip_prefix("trace-").and_then(|rest| rest.strip_suffix(".safetensors"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Writes a file under a temporary name and renames it, and returns its size. The same samples give the same bytes.
///
/// # Errors
/// [`Error::Weights`] if it cannot be written.
pub(super) fn write(path: &Path, description: &Description, windows: &[Window], samples: &CompactRows) -> Result<u64> {
    let info = &description.samples;
    let (rows, layers) = (samples.rows, info.layers.saturating_sub(1));
    let of_windows: Vec<u32> = windows.iter().flat_map(|w| [w.document, w.len as u32]).collect();
    let names: Vec<String> = (0..samples.inputs.len()).map(|s| format!("{s}.inputs")).collect();
    let inputs = names.iter().zip(&samples.inputs).map(|(name, x)| {
        let bytes: &[u8] = bytemuck::cast_slice(x);
        (name.as_str(), Dtype::F16, vec![rows, info.inputs], bytes)
    });
    let (heads, neurons) = (&samples.heads, &samples.neurons);
    let others: [(&str, Dtype, Vec<usize>, &[u8]); 5] = [
        ("windows", Dtype::U32, vec![windows.len(), 2], bytemuck::cast_slice(&of_windows)),
        ("heads", Dtype::U8, vec![rows, layers, info.heads], &heads.codes),
        ("heads.scale", Dtype::F32, vec![rows, layers], bytemuck::cast_slice(&heads.scales)),
        ("neurons", Dtype::U8, vec![rows, layers, info.neurons], &neurons.codes),
        ("neurons.scale", Dtype::F32, vec![rows, layers], bytemuck::cast_slice(&neurons.scales)),
    ];
    let failed = |reason: String| wrong(reason).in_file(path);
    let views: Vec<(&str, TensorView<'_>)> = inputs
        .chain(others)
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| failed(e.to_string()))?;
    let json = serde_json::to_string(description).map_err(|e| failed(e.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), json)]);
    let bytes = serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
    write_atomic(path, &bytes)?;
    Ok(bytes.len() as u64)
}

impl TraceFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Weights`]; [`Error::InFile`] with what is wrong.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::of(File::map(path)?).map_err(|e| e.in_file(path))
    }

    /// As [`TraceFile::open`], for the content of a file.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of(File::from_bytes(bytes)?)
    }

    fn of(file: File) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let json = file.expect_metadata(KEY)?;
        // First of all: another version may have other fields.
        let Version { version } = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        if version != u64::from(VERSION) {
            return Err(wrong(format!(
                "trace format version {version}; this program reads version {VERSION}: trace again, or use the program it was \
                 made with"
            )));
        }
        let description: Description = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        let info = &description.samples;
        if info.layers < 2 || info.heads == 0 || info.neurons == 0 || info.inputs == 0 || info.stations.is_empty() {
            return Err(wrong("the samples are of a model without layers, heads, neurons or stations".to_owned()));
        }
        // Far more than any model has, and nothing below overflows.
        let size = info.layers.saturating_mul(info.heads.saturating_add(info.neurons)).saturating_add(info.inputs);
        if size > 1 << 40 {
            return Err(wrong(format!("samples of {size} values are of no model")));
        }
        if description.file >= description.of {
            return Err(wrong(format!("this is file {} of {}, which cannot be", description.file, description.of)));
        }
        let count = file.shape("windows").and_then(|shape| shape.first()).copied().unwrap_or(1);
        let pairs: Vec<u32> = values(file.bytes("windows", &[count, 2], Dtype::U32)?);
        let mut windows = Vec::with_capacity(count);
        let mut rows = 0_usize;
        for pair in pairs.chunks_exact(2) {
            windows.push(Window { document: pair[0], start: rows, len: pair[1] as usize });
            rows = rows.saturating_add(pair[1] as usize);
        }
        let layers = info.layers - 1;
        for station in 0..info.stations.len() {
            file.bytes(&format!("{station}.inputs"), &[rows, info.inputs], Dtype::F16)?;
        }
        for (name, width) in [("heads", info.heads), ("neurons", info.neurons)] {
            file.bytes(name, &[rows, layers, width], Dtype::U8)?;
            file.bytes(&format!("{name}.scale"), &[rows, layers], Dtype::F32)?;
        }
        Ok(TraceFile { file, description, windows, rows })
    }

    /// Appends the samples of a window to `out`.
    ///
    /// # Errors
    /// [`LearnError::BadSample`] if an input or scale is no finite number, or a scale is negative.
    pub(super) fn read(&self, window: Window, out: &mut CompactRows) -> Result<()> {
        let (info, rows) = (&self.description.samples, window.start..window.start + window.len);
        let layers = info.layers - 1;
        for (s, inputs) in out.inputs.iter_mut().enumerate() {
            let all = self.file.bytes(&format!("{s}.inputs"), &[self.rows, info.inputs], Dtype::F16)?;
            let x: Vec<f16> = values(&all[2 * info.inputs * rows.start..2 * info.inputs * rows.end]);
            if let Some(at) = x.iter().position(|v| !v.is_finite()) {
                let what = format!("input {} after layer {}", at % info.inputs, info.stations[s]);
                return Err(LearnError::BadSample { what, value: x[at].to_f32() }.into());
            }
            inputs.extend_from_slice(&x);
        }
        for (name, width, codes) in [("heads", info.heads, &mut out.heads), ("neurons", info.neurons, &mut out.neurons)]
        {
            let all = self.file.bytes(name, &[self.rows, layers, width], Dtype::U8)?;
            codes.codes.extend_from_slice(&all[layers * width * rows.start..layers * width * rows.end]);
            let all = self.file.bytes(&format!("{name}.scale"), &[self.rows, layers], Dtype::F32)?;
            let scales: Vec<f32> = values(&all[4 * layers * rows.start..4 * layers * rows.end]);
            if let Some(at) = scales.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
                let what = format!("the largest importance of {name} of layer {}", at % layers + 1);
                return Err(LearnError::BadSample { what, value: scales[at] }.into());
            }
            codes.scales.extend_from_slice(&scales);
        }
        out.rows += window.len;
        Ok(())
    }
}

/// Checks the content of a trace file and reads all of its samples: what a fuzzer calls.
///
/// # Errors
/// As reading a trace; never a panic.
pub fn check_trace_file(bytes: &[u8]) -> Result<()> {
    let file = TraceFile::from_bytes(bytes)?;
    let mut rows = CompactRows::new(&file.description.samples);
    for &window in &file.windows {
        rows.clear();
        file.read(window, &mut rows)?;
    }
    Ok(())
}

/// The values that `bytes` are, wherever they lie.
fn values<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

pub(super) fn wrong(reason: String) -> Error {
    Error::FileMetadata { key: KEY.to_owned(), reason }
}
