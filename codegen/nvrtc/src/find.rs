//! Where the library may be.

use std::env;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::bindings::{Bindings, open_first};

/// Environment variable with the library's file or a folder that holds it.
pub const VARIABLE: &str = "SHADOWLLM_NVRTC";

/// Names that the system's loader is asked for, newest first.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders below a given one that are searched: itself, those of a toolkit, those of NVIDIA's Python packages.
const BELOW: [&str; 5] = ["", "lib64", "lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"];

/// Opens the library that `given` names, a file or a folder; without it, the system's.
pub(crate) fn open(given: Option<&Path>) -> Result<(PathBuf, Bindings), Error> {
    match given {
        Some(path) => open_given(path),
        None => open_system(),
    }
}

fn open_given(given: &Path) -> Result<(PathBuf, Bindings), Error> {
    let path = || given.to_owned();
    if !given.exists() {
        return Err(Error::Missing { path: path() });
    }
    let candidates = if given.is_dir() { in_folder(given) } else { vec![path()] };
    if candidates.is_empty() {
        return Err(Error::NotInFolder { path: path() });
    }
    // The real file, not a link to it: the compiler finds its second library, `libnvrtc-builtins`, beside itself.
    let real: Vec<PathBuf> = candidates.into_iter().map(|file| file.canonicalize().unwrap_or(file)).collect();
    open_first(&real).map_err(|reasons| Error::CannotOpen { reasons })
}

fn open_system() -> Result<(PathBuf, Bindings), Error> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let toolkits: Vec<PathBuf> = toolkits.chain([PathBuf::from("/usr/local/cuda")]).collect();
    let mut candidates: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    candidates.extend(toolkits.iter().flat_map(|folder| in_folder(folder)));
    open_first(&candidates).map_err(|_| Error::NotInstalled { names: NAMES.join(", "), folders: shown(&toolkits) })
}

fn shown(folders: &[PathBuf]) -> String {
    let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    names.join(", ")
}

/// Libraries below `folder`, newest first by name: `libnvrtc.so.13` before `libnvrtc.so.12`. Not `libnvrtc-builtins` and not
/// `libnvrtc.alt`, which is the same compiler for old processors.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for below in BELOW {
        let Ok(entries) = folder.join(below).read_dir() else { continue };
        let files = entries.flatten().map(|entry| entry.path());
        found.extend(files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc.so"))));
    }
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_is_searched_as_toolkits_and_python_packages_are_laid_out() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("nvidia/cuda_nvrtc/lib");
        fs::create_dir_all(&lib).unwrap();
        for name in ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.alt.so.12", "libnvrtc-builtins.so.12.9"] {
            fs::write(lib.join(name), "").unwrap();
        }
        assert_eq!(in_folder(dir.path()), [lib.join("libnvrtc.so.13"), lib.join("libnvrtc.so.12")]);
        assert_eq!(in_folder(&lib), [lib.join("libnvrtc.so.13"), lib.join("libnvrtc.so.12")]);
    }
}
