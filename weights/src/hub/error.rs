//! What can go wrong with models by name.

use std::path::PathBuf;

/// Why a model cannot be had from the hub or its cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No folder for downloaded models can be determined.
    #[error("no home directory to keep downloaded models in; set HF_HOME or HF_HUB_CACHE")]
    NoCacheDirectory,
    /// Offline, and the cache does not have all of the model.
    #[error(
        "{repo} at {revision} is not complete in the cache {cache}: {missing} is missing, and offline mode forbids to download it; \
         run once without HF_HUB_OFFLINE"
    )]
    NotInCache {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The first thing missing.
        missing: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The hub could not be reached.
    #[error("cannot reach {url}: {reason}; check the network, or give a directory instead of a name")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The network's reason.
        reason: String,
    },
    /// The model is private, gated or unknown.
    #[error("{repo} is private, gated or does not exist (HTTP {status}); {advice}")]
    Denied {
        /// `org/name`.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// The hub has no such model, revision or file.
    #[error("{endpoint} has no model {repo} at revision {revision}; check the name")]
    NotOnHub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Address of the hub.
        endpoint: String,
    },
    /// The hub answered with an error.
    #[error("{url} answered with HTTP {status}; try again later")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The hub's answer makes no sense.
    #[error("cannot use the answer of {url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository that is no model the engine can load.
    #[error("{repo} at revision {revision} cannot be used: {reason}")]
    UnusableRepo {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What it lacks.
        reason: String,
    },
    /// A download that stopped getting on. What has arrived is kept.
    #[error(
        "download of {name} broke off after {received} of {size} bytes: {reason}; run the same command again to go on from there"
    )]
    DownloadBroken {
        /// The file.
        name: String,
        /// Bytes that have arrived.
        received: u64,
        /// Bytes of the whole.
        size: u64,
        /// Why the last attempt ended.
        reason: String,
    },
}
