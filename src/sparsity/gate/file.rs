//! Gate thresholds on disk.
//!
//! A safetensors file with F32 tensors `fractions` `[Q]`, `limits` `[L, Q]` and, for the weighted statistic, `scales` `[L, F]`. The
//! metadata entry `gate_thresholds` is a JSON object: `version`, `model` (fingerprint), `statistic`, `data`, `tokens`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shadowllm_weights::{DType, ModelConfig, SafetensorsWriter, TensorSpec};

use super::{GateStatistic, GateThresholds, check_gated};
use crate::sparsity::file::File;
use crate::sparsity::{ModelIdentity, Units};
use crate::{Error, Result};

/// Version of the format that is written and read.
const VERSION: u32 = 1;
/// Key of the metadata.
const KEY: &str = "gate_thresholds";

/// The metadata.
#[derive(Debug, Serialize, Deserialize)]
struct Info {
    version: u32,
    model: ModelIdentity,
    statistic: GateStatistic,
    data: String,
    tokens: u64,
}

impl GateThresholds {
    /// Reads a file for the model with this configuration and fingerprint.
    ///
    /// # Errors
    /// [`Error::NotGated`]; [`Error::Io`]; [`Error::InFile`] with what is wrong: no safetensors file, another model
    /// ([`Error::OtherModel`]), a tensor that is missing, unknown or of another shape or type, values that are no thresholds
    /// ([`Error::GateFile`]).
    pub fn read(path: &Path, config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        check_gated(config)?;
        let file = File::read(path)?;
        Self::of(&file, config, model).map_err(|e| e.in_file(path))
    }

    /// As [`GateThresholds::read`], for the content of a file.
    ///
    /// # Errors
    /// As there, but for those of reading.
    pub fn from_bytes(bytes: &[u8], config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        check_gated(config)?;
        Self::of(&File::from_bytes(bytes)?, config, model)
    }

    fn of(file: &File, config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        let info = read_info(file.expect_metadata(KEY)?)?;
        if info.model != *model {
            return Err(Error::OtherModel { found: info.model, expected: model.clone() });
        }
        let units = Units::from(config);
        let weighted = info.statistic == GateStatistic::Weighted;
        let known = ["fractions", "limits"].into_iter().chain(weighted.then_some("scales"));
        if let Some(name) = file.names().find(|name| known.clone().all(|known| known != *name)) {
            return Err(wrong(format!("tensor {name} has no meaning beside statistic {}", info.statistic)));
        }
        let q = file.shape("fractions").and_then(|shape| shape.first()).copied().unwrap_or(0);
        let thresholds = GateThresholds {
            model: info.model,
            statistic: info.statistic,
            data: info.data,
            tokens: info.tokens,
            fractions: file.f32("fractions", &[q])?,
            limits: file.f32("limits", &[units.layers, q])?,
            scales: match weighted {
                true => Some(file.f32("scales", &[units.layers, units.neurons])?),
                false => None,
            },
        };
        thresholds.validate()?;
        Ok(thresholds)
    }

    /// Writes the file under a temporary name and renames it. The same thresholds give the same bytes.
    ///
    /// # Errors
    /// [`Error::GateFile`] if values are no thresholds; [`Error::Weights`] if it cannot be written.
    pub fn write(&self, path: &Path, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        let q = self.fractions.len();
        let mut tensors =
            vec![("fractions", vec![q], &self.fractions), ("limits", vec![units.layers, q], &self.limits)];
        if let Some(scales) = &self.scales {
            tensors.push(("scales", vec![units.layers, units.neurons], scales));
        }
        if self.scales.is_some() != (self.statistic == GateStatistic::Weighted) {
            return Err(wrong(format!(
                "scales belong to statistic weighted, and to no other; it is {}",
                self.statistic
            )));
        }
        if let Some((name, shape, values)) = tensors.iter().find(|(_, s, v)| s.iter().product::<usize>() != v.len()) {
            return Err(wrong(format!("{name} has {} values, expected {shape:?}", values.len())));
        }
        self.validate()?;
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, shape, _)| TensorSpec { name: (*name).to_owned(), dtype: DType::F32, shape: shape.clone() })
            .collect();
        let info = Info {
            version: VERSION,
            model: self.model.clone(),
            statistic: self.statistic,
            data: self.data.clone(),
            tokens: self.tokens,
        };
        let info = serde_json::to_string(&info).map_err(|e| wrong(e.to_string()))?;
        let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::from([(KEY.to_owned(), info)]))?;
        for (name, _, values) in &tensors {
            writer.write(name, bytemuck::cast_slice(values))?;
        }
        Ok(writer.finish()?)
    }

    /// Checks that the values are what their names say; their numbers are known to fit.
    fn validate(&self) -> Result<()> {
        let ascending = |values: &[f32]| values.windows(2).all(|pair| pair[0] <= pair[1]);
        let q = self.fractions.len();
        if q == 0 {
            return Err(wrong("there are no fractions".to_owned()));
        }
        if let Some(value) = self.fractions.iter().find(|&&value| !(value > 0.0 && value < 1.0)) {
            return Err(wrong(format!("a fraction is {value}; expected a number over 0 and under 1")));
        }
        if self.fractions.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(wrong("the fractions do not ascend".to_owned()));
        }
        let is_size = |value: &f32| value.is_finite() && *value >= 0.0;
        for (layer, limits) in self.limits.chunks_exact(q).enumerate() {
            if let Some(value) = limits.iter().find(|value| !is_size(value)) {
                return Err(wrong(format!(
                    "a limit of layer {layer} is {value}; expected a finite number of at least 0"
                )));
            }
            if !ascending(limits) {
                return Err(wrong(format!("the limits of layer {layer} do not ascend")));
            }
        }
        if let Some(value) = self.scales.iter().flatten().find(|value| !is_size(value)) {
            return Err(wrong(format!("a scale is {value}; expected a finite number of at least 0")));
        }
        Ok(())
    }
}

/// Reads the metadata; the version first, for another version may have other fields.
fn read_info(json: &str) -> Result<Info> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let bad = |e: serde_json::Error| Error::FileMetadata { key: KEY.to_owned(), reason: e.to_string() };
    let Version { version } = serde_json::from_str(json).map_err(bad)?;
    if version != u64::from(VERSION) {
        return Err(wrong(format!("it has format version {version}, this program reads {VERSION}")));
    }
    serde_json::from_str(json).map_err(bad)
}

fn wrong(reason: String) -> Error {
    Error::GateFile { reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use crate::sparsity::testing::{UNITS, config};

    fn gated() -> ModelConfig {
        ModelConfig { gated: true, ..config() }
    }

    fn identity(text: &str) -> ModelIdentity {
        ModelIdentity::from(text.to_owned())
    }

    #[test]
    fn what_is_written_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gates");
        for scales in [true, false] {
            let thresholds = sample(scales);
            thresholds.write(&path, UNITS).unwrap();
            let read = GateThresholds::read(&path, &gated(), &identity("abc")).unwrap();
            assert_eq!(read, thresholds);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(GateThresholds::from_bytes(&bytes, &gated(), &identity("abc")).unwrap(), thresholds);
            thresholds.write(&path, UNITS).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "the same bytes every time");
        }
    }

    #[test]
    fn values_that_are_no_thresholds_are_not_written() {
        struct Case {
            edit: fn(&mut GateThresholds),
            reason: &'static str,
        }
        let cases = [
            Case { edit: |t| t.fractions[0] = 0.0, reason: "a fraction is 0; expected a number over 0 and under 1" },
            Case { edit: |t| t.fractions[2] = 1.0, reason: "a fraction is 1; expected a number over 0 and under 1" },
            Case { edit: |t| t.fractions[1] = 0.25, reason: "the fractions do not ascend" },
            Case {
                edit: |t| t.limits[4] = f32::NAN,
                reason: "a limit of layer 1 is NaN; expected a finite number of at least 0",
            },
            Case {
                edit: |t| t.limits[8] = f32::INFINITY,
                reason: "a limit of layer 2 is inf; expected a finite number of at least 0",
            },
            Case { edit: |t| t.limits[3] = 3.0, reason: "the limits of layer 1 do not ascend" },
            Case { edit: |t| t.limits.truncate(8), reason: "limits has 8 values, expected [3, 3]" },
            Case { edit: |t| (t.fractions, t.limits) = (Vec::new(), Vec::new()), reason: "there are no fractions" },
            Case {
                edit: |t| t.scales.as_mut().unwrap()[7] = -1.0,
                reason: "a scale is -1; expected a finite number of at least 0",
            },
            Case {
                edit: |t| t.scales = None,
                reason: "scales belong to statistic weighted, and to no other; it is weighted",
            },
        ];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gates");
        for Case { edit, reason } in cases {
            let mut thresholds = sample(true);
            edit(&mut thresholds);
            let expected =
                format!("no usable gate thresholds: {reason}; make the file again with `shadowllm calibrate-gate`");
            assert_eq!(thresholds.write(&path, UNITS).unwrap_err().to_string(), expected);
            assert!(!path.exists());
        }
    }
}
