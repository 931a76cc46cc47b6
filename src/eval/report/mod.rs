//! Results to look at and to go on with: tables as CSV, and a page that any browser shows.
//!
//! The page is one file without scripts, fonts or images from elsewhere. Plots are SVG text whose colours are those of the page's
//! style sheet, light or dark as the viewer prefers; every figure that is plotted is in a table, too.
//!
//! ```text
//! SweepResults --sweep_page--> report.html     axis, chart, head_map: SVG; page: HTML
//!              --csv---------> sweep.csv, layers.csv
//! ```

mod axis;
mod chart;
mod csv;
mod head_map;
mod page;
mod sweep_page;

use std::path::{Path, PathBuf};

use shadowllm_weights::write_atomic;

use super::sweep::SweepResults;
use crate::Result;

pub use csv::{layers_csv, sweep_csv};
pub use sweep_page::sweep_page;

/// Writes what there is of a sweep into a folder: `sweep.csv`, `layers.csv` and `report.html`, each under a temporary name that is
/// then renamed. Returns their paths.
///
/// # Errors
/// [`crate::Error::Weights`] if a file cannot be written.
pub fn write_sweep(directory: &Path, results: &SweepResults) -> Result<Vec<PathBuf>> {
    let files =
        [("sweep.csv", sweep_csv(results)), ("layers.csv", layers_csv(results)), ("report.html", sweep_page(results))];
    let write = |(name, text): (&str, String)| {
        let path = directory.join(name);
        write_atomic(&path, text.as_bytes())?;
        Ok(path)
    };
    files.into_iter().map(write).collect()
}
