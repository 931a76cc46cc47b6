//! Models by Hugging Face name: from the cache, or downloaded into it.
//!
//! The cache is the one every Hugging Face tool shares (`models--org--name/{refs,blobs,snapshots}`), so a model that is there is
//! used without a network, and a model downloaded here is there for the others. Its layout comes from the crate hf-hub; the
//! transfer is our own, because a download of gigabytes must survive a broken connection: it goes on where it stopped, checks
//! that the server really did so, and keeps what it has for the next run if the network stays away.
//!
//! Everything that the server sends and that becomes a path (commit, ETag, shard names) is checked first.

mod cache;
mod client;
mod error;
mod options;
mod transfer;

use std::path::PathBuf;

use cache::RepoCache;
use client::Client;
pub use error::HubError;
pub use options::HubOptions;

use crate::{Error, Progress, Result, index, shards, source};

/// Files beside the weights that are downloaded if the repository has them.
const SIDE_FILES: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// A model on the hub.
struct Repo<'a> {
    name: &'a str,
    revision: &'a str,
}

/// The directory of the model `repo` (`org/name`) at `revision` (branch, tag or commit; usually `main`).
///
/// A model that is complete in the cache is used as it is, without asking whether a newer one exists; one that lacks only its
/// tokenizer is used if the hub cannot be reached. Otherwise what is missing
/// is downloaded: the configuration, tokenizer files, and the weights in safetensors form. A repository whose `main` has only
/// PyTorch weights is looked up in the pull request that Hugging Face's conversion bot opened, as transformers does.
///
/// # Errors
/// [`HubError`]: offline and incomplete, unreachable, denied, not found, no safetensors,
/// or a download that broke more often than it got on. [`Error::Io`] if the cache cannot be written.
pub fn fetch(repo: &str, revision: &str, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf> {
    source::check_repo(repo)
        .and_then(|()| source::check_revision(revision))
        .map_err(|reason| Error::NoSuchModel { given: format!("{repo}@{revision}"), reason })?;
    let repo = Repo { name: repo, revision };
    let cache = RepoCache::new(&options.cache_directory()?, &repo);
    // Offline, a model without its tokenizer is still one that works on token ids.
    let missing = match cache.complete_snapshot(!options.offline) {
        Ok(snapshot) => return Ok(snapshot),
        Err(missing) => missing,
    };
    if options.offline {
        return Err(HubError::NotInCache {
            repo: repo.name.to_owned(),
            revision: revision.to_owned(),
            missing,
            cache: cache.root().to_owned(),
        }
        .into());
    }
    match download(&repo, &cache, &Client::new(options), progress) {
        // Without the network, what would do offline does here too.
        Err(unreachable @ Error::Hub(HubError::Unreachable { .. })) => {
            cache.complete_snapshot(false).map_err(|_| unreachable)
        }
        other => other,
    }
}

/// Downloads what the cache lacks of a revision, and makes the revision point to it once everything is there.
fn download(repo: &Repo<'_>, cache: &RepoCache, client: &Client, progress: &dyn Progress) -> Result<PathBuf> {
    let listing = client.listing(repo)?;
    let has = |name: &str| listing.files.iter().any(|file| file == name);
    let commit = listing.commit.as_str();
    if !has("config.json") {
        return Err(unusable(repo, "it has no config.json".to_owned()));
    }
    let weights = [shards::SINGLE, shards::INDEX].into_iter().find(|name| has(name));
    let Some(weights) = weights else {
        return converted(repo, cache, client, &listing, progress);
    };
    let snapshot = cache.snapshot(commit);
    let get = |name: &str| transfer::obtain(repo, commit, name, cache, client, progress);
    get("config.json")?;
    for name in SIDE_FILES.into_iter().filter(|name| has(name)) {
        get(name)?;
    }
    let weights_path = get(weights)?;
    if weights == shards::INDEX {
        let json = crate::files::read(&weights_path, shards::MAX_INDEX)?;
        let shard_of = index::parse_safetensors_index(&json).map_err(|e| e.in_file(&weights_path))?;
        let mut names: Vec<String> = shard_of.into_values().collect();
        names.sort();
        names.dedup();
        for name in names {
            get(&name)?;
        }
    }
    if !has("tokenizer.json") {
        cache.mark_absent(commit, "tokenizer.json")?;
    }
    cache.point_to(commit)?;
    Ok(snapshot)
}

/// The same model from the pull request of the conversion bot, for a `main` without safetensors.
fn converted(
    repo: &Repo<'_>,
    cache: &RepoCache,
    client: &Client,
    listing: &client::Listing,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let found = listing.files.iter().find(|name| name.ends_with(".bin") || name.ends_with(".gguf"));
    let reason = match found {
        Some(name) => format!("it has no safetensors, only {name}"),
        None => "it has no safetensors".to_owned(),
    };
    if repo.revision != "main" || !found.is_some_and(|name| name.ends_with(".bin")) {
        return Err(unusable(repo, reason));
    }
    let Some(number) = client.conversion_request(repo)? else {
        return Err(unusable(repo, format!("{reason}, and no pull request of the conversion bot is open")));
    };
    let revision = format!("refs/pr/{number}");
    let request = Repo { name: repo.name, revision: &revision };
    let snapshot = download(&request, &cache.at(&request), client, progress)?;
    // What transformers writes too; `complete_snapshot` finds the pull request by it.
    cache.mark_absent(&listing.commit, shards::SINGLE)?;
    cache.point_to(&listing.commit)?;
    Ok(snapshot)
}

fn unusable(repo: &Repo<'_>, reason: String) -> Error {
    HubError::UnusableRepo { repo: repo.name.to_owned(), revision: repo.revision.to_owned(), reason }.into()
}
