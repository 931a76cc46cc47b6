//! Scores on disk: what the static policy starts from.
//!
//! A safetensors file with `heads` `[L, H]` and `neurons` `[L, F]`, both F32, one of which may be missing where the criterion says
//! nothing about such units (a budget that prunes them is then refused), and in its metadata
//!
//! | key | value |
//! | --- | --- |
//! | `criterion` | how the scores were computed |
//! | `model` | fingerprint of the model ([`ModelIdentity`]); may be missing, then only the shape is checked |
//!
//! so that any tool that writes safetensors can make one.

use std::collections::BTreeMap;
use std::path::Path;

use shadowllm_weights::{DType, SafetensorsWriter, TensorSpec};

use super::file::File;
use super::{ModelIdentity, Scores, Units};
use crate::{Error, Result};

/// Scores with their origin.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoresFile {
    /// One per unit, or none for a kind of units. The rows of layer 0 may hold anything.
    pub scores: Scores,
    /// How they were computed.
    pub criterion: String,
    /// The model that they were computed for.
    pub model: Option<ModelIdentity>,
}

impl ScoresFile {
    /// Reads a file for a model of this shape and, if the file names its model, of this identity.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] with what is wrong: no safetensors file, a tensor missing or of another shape or type,
    /// no criterion, a score outside layer 0 that is NaN or infinite ([`Error::BadScore`]), another model
    /// ([`Error::OtherModel`]).
    pub fn read(path: &Path, units: impl Into<Units>, model: &ModelIdentity) -> Result<Self> {
        let file = File::read(path)?;
        Self::of(&file, units.into(), model).map_err(|e| e.in_file(path))
    }

    /// As [`ScoresFile::read`], for the content of a file.
    ///
    /// # Errors
    /// As there, but for those of reading.
    pub fn from_bytes(bytes: &[u8], units: impl Into<Units>, model: &ModelIdentity) -> Result<Self> {
        Self::of(&File::from_bytes(bytes)?, units.into(), model)
    }

    fn of(file: &File, units: Units, model: &ModelIdentity) -> Result<Self> {
        let criterion = file.expect_metadata("criterion")?.to_owned();
        let found = file.metadata("model").map(|text| ModelIdentity::from(text.to_owned()));
        if let Some(found) = &found
            && found != model
        {
            return Err(Error::OtherModel { found: found.clone(), expected: model.clone() });
        }
        // At least one of them.
        let of = |name, width, other| match file.has(other) && !file.has(name) {
            true => Ok(Vec::new()),
            false => file.f32(name, &[units.layers, width]),
        };
        let scores =
            Scores { heads: of("heads", units.heads, "neurons")?, neurons: of("neurons", units.neurons, "heads")? };
        scores.validate(units)?;
        Ok(ScoresFile { scores, criterion, model: found })
    }

    /// Writes the file under a temporary name and renames it.
    ///
    /// # Errors
    /// [`Error::ScoresLength`], [`Error::BadScore`], [`Error::Weights`] if it cannot be written.
    pub fn write(&self, path: &Path, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        self.scores.validate(units)?;
        let kinds = [("heads", units.heads, &self.scores.heads), ("neurons", units.neurons, &self.scores.neurons)];
        let present = || kinds.into_iter().filter(|(_, _, scores)| !scores.is_empty());
        let specs: Vec<TensorSpec> = present()
            .map(|(name, width, _)| TensorSpec {
                name: name.to_owned(),
                dtype: DType::F32,
                shape: vec![units.layers, width],
            })
            .collect();
        let mut metadata = BTreeMap::from([("criterion".to_owned(), self.criterion.clone())]);
        if let Some(model) = &self.model {
            metadata.insert("model".to_owned(), model.to_string());
        }
        let mut writer = SafetensorsWriter::create(path, &specs, &metadata)?;
        for (name, _, scores) in present() {
            writer.write(name, bytemuck::cast_slice(scores))?;
        }
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::{UNITS, scores};
    use crate::sparsity::{Budget, Fixed, Scope};

    fn identity(text: &str) -> ModelIdentity {
        ModelIdentity::from(text.to_owned())
    }

    fn sample() -> ScoresFile {
        ScoresFile { scores: scores(1), criterion: "fisher".to_owned(), model: Some(identity("abc")) }
    }

    #[test]
    fn what_is_written_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.safetensors");
        let mut file = sample();
        for model in [Some(identity("abc")), None] {
            file.model = model;
            file.write(&path, UNITS).unwrap();
            assert_eq!(ScoresFile::read(&path, UNITS, &identity("abc")).unwrap(), file);
        }
        assert!(ScoresFile::read(&path, UNITS, &identity("other")).is_ok(), "a file that names no model is for any");
    }

    #[test]
    fn a_kind_without_scores_is_kept_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.safetensors");
        let mut file = sample();
        file.scores.neurons.clear();
        file.write(&path, UNITS).unwrap();
        let read = ScoresFile::read(&path, UNITS, &identity("abc")).unwrap();
        assert_eq!(read, file);
        for scope in [Scope::Local, Scope::Global] {
            let heads_only = Budget::new(0.5, 1.0, scope).unwrap();
            let mut full = sample().scores;
            let plan = Fixed::new(&read.scores, &heads_only, UNITS).unwrap().plan().clone();
            assert_eq!(&plan, Fixed::new(&full, &heads_only, UNITS).unwrap().plan());
            full.heads.clear();
            assert_eq!(
                Fixed::new(&full, &heads_only, UNITS).unwrap_err().to_string(),
                "the scores rank no heads, but the budget keeps only 0.5 of them; keep all heads, or use scores of a \
                 criterion that ranks them"
            );
            assert!(Fixed::new(&read.scores, &Budget::new(1.0, 0.5, scope).unwrap(), UNITS).is_err());
        }
        file.scores.heads.clear();
        assert_eq!(
            file.write(&path, UNITS).unwrap_err().to_string(),
            "0 scores for heads were given; a model of 3 layers of 4 heads needs 12"
        );
    }

    #[test]
    fn scores_that_cannot_be_ranked_are_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.safetensors");
        let mut file = sample();
        file.scores.neurons[95] = f32::INFINITY;
        assert_eq!(
            file.write(&path, UNITS).unwrap_err().to_string(),
            "the score of neuron 31 of layer 2 is inf; scores must be finite numbers"
        );
        assert!(!path.exists());
    }

    #[test]
    fn wrong_files_say_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.safetensors");
        let shown = path.display();
        let read = || ScoresFile::read(&path, UNITS, &identity("abc")).unwrap_err().to_string();

        assert!(read().starts_with(&format!("cannot read {shown}: ")), "{}", read());

        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert_eq!(
            read(),
            format!(
                "{shown}: 3 bytes are too few for a safetensors file; it is empty or cut off: download or copy it again"
            )
        );

        let mut other = sample();
        other.model = Some(identity("def"));
        other.write(&path, UNITS).unwrap();
        assert_eq!(
            read(),
            format!("{shown}: made for the model def, but this model is abc; use a file that was made for this model")
        );

        let tensors = |dtype: DType, heads: &[usize], names: [&str; 2], metadata: &BTreeMap<String, String>| {
            let specs = [
                TensorSpec { name: names[0].to_owned(), dtype, shape: heads.to_vec() },
                TensorSpec { name: names[1].to_owned(), dtype: DType::F32, shape: vec![3, 32] },
            ];
            let mut writer = SafetensorsWriter::create(&path, &specs, metadata).unwrap();
            for spec in &specs {
                writer.write(&spec.name, &vec![0xff; spec.byte_len().unwrap()]).unwrap();
            }
            writer.finish().unwrap();
        };
        let metadata = BTreeMap::from([("criterion".to_owned(), "fisher".to_owned())]);
        let names = ["heads", "neurons"];
        tensors(DType::F32, &[3, 4], names, &BTreeMap::new());
        assert_eq!(
            read(),
            format!(
                "{shown}: metadata criterion: it is not there; this is another kind of file, or it was written without metadata"
            )
        );
        tensors(DType::F32, &[3, 5], names, &metadata);
        assert_eq!(
            read(),
            format!(
                "{shown}: tensor heads has shape [3, 5], but this model needs [3, 4]; the file is for another model"
            )
        );
        tensors(DType::F16, &[3, 4], names, &metadata);
        assert_eq!(read(), format!("{shown}: tensor heads has type F16; expected F32"));
        tensors(DType::F32, &[3, 4], ["a", "b"], &metadata);
        assert_eq!(read(), format!("{shown}: there is no tensor heads; the file has a, b"));
        tensors(DType::F32, &[3, 4], names, &metadata);
        assert_eq!(read(), format!("{shown}: the score of head 0 of layer 1 is NaN; scores must be finite numbers"));
    }
}
