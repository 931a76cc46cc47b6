//! Rotary position parameters, in the keys of both transformers generations.
//!
//! transformers 4 has `rope_theta` and `rope_scaling` (whose kind is `type` in old files, `rope_type` in newer ones);
//! transformers 5 has one object `rope_parameters` with everything in it. As transformers 5 does, a `rope_scaling` that is there
//! comes before `rope_parameters`, and keys in the object come before keys beside it.

use super::{Fields, Rope, RopeScaling};
use crate::{Error, Result};

const DEFAULT_THETA: f32 = 10_000.0;
const SUPPORTED: &str = "supported are default, linear and llama3";

pub(super) fn read(fields: &Fields, max_positions: usize) -> Result<Rope> {
    let object = match fields.object("rope_scaling")?.filter(|o| !o.is_empty()) {
        Some(object) => Some(object),
        None => fields.object("rope_parameters")?,
    };
    full_rotation(fields)?;
    let outer_theta = fields.positive("rope_theta")?.unwrap_or(DEFAULT_THETA);
    let Some(object) = object else {
        return Ok(Rope { theta: outer_theta, scaling: RopeScaling::None });
    };
    for nested in ["full_attention", "sliding_attention"] {
        if object.has(nested) {
            return Err(Error::UnsupportedFeature {
                feature: format!("{} (different rotary positions for kinds of layers)", object.name(nested)),
                supported: "supported is one set of parameters for all layers".to_owned(),
            });
        }
    }
    full_rotation(&object)?;
    let theta = object.positive("rope_theta")?.unwrap_or(outer_theta);
    let kind = match object.text("rope_type")? {
        Some(kind) => kind,
        None => object.text("type")?.unwrap_or_else(|| "default".to_owned()),
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: object.required_positive("factor")? },
        "llama3" => llama3(&object, fields, max_positions)?,
        other => {
            return Err(Error::UnsupportedFeature {
                feature: format!("rotary scaling {other:?}"),
                supported: SUPPORTED.to_owned(),
            });
        }
    };
    Ok(Rope { theta, scaling })
}

fn llama3(object: &Fields, fields: &Fields, max_positions: usize) -> Result<RopeScaling> {
    let low_freq_factor = object.required_positive("low_freq_factor")?;
    let high_freq_factor = object.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(
            object.wrong("high_freq_factor", &format!("a number over low_freq_factor, which is {low_freq_factor}"))
        );
    }
    const ORIGINAL: &str = "original_max_position_embeddings";
    let original = match fields.size(ORIGINAL)? {
        Some(n) => n,
        None => object.size(ORIGINAL)?.unwrap_or(max_positions),
    };
    Ok(RopeScaling::Llama3 {
        factor: object.required_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_positions: original,
    })
}

/// Refuses models that rotate only a part of each head.
fn full_rotation(fields: &Fields) -> Result<()> {
    match fields.positive("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(Error::UnsupportedFeature {
            feature: format!("{} {factor}", fields.name("partial_rotary_factor")),
            supported: "supported is 1: every dimension of a head is rotated".to_owned(),
        }),
        _ => Ok(()),
    }
}
