//! One file into the cache, across broken connections.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ureq::http::StatusCode;

use super::cache::{RepoCache, make_parent};
use super::client::{Client, header, strange};
use super::{HubError, Repo};
use crate::files::io_error;
use crate::{Error, Progress, Result};

/// Attempts that brought no byte before a download gives up. An attempt that brought some does not count.
const MAX_IDLE_ATTEMPTS: u32 = 3;
/// Pause before the second attempt; doubles with each idle one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Bytes moved at a time.
const CHUNK: usize = 256 << 10;

/// Makes `name` of a commit available: links it if the cache has its contents, downloads it otherwise. Gives the link.
pub(super) fn obtain(
    repo: &Repo<'_>,
    commit: &str,
    name: &str,
    cache: &RepoCache,
    client: &Client,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let link = cache.snapshot(commit).join(name);
    if link.exists() {
        return Ok(link);
    }
    let url = client.file_url(repo, commit, name);
    let metadata = client.metadata(repo, &url)?;
    let blob = cache.blob(&metadata.etag);
    make_parent(&blob)?;
    let lock_path = cache.lock(&metadata.etag);
    make_parent(&lock_path)?;
    let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
    wait_for(&lock, &lock_path, name, progress)?;
    // Whoever held the lock may have finished the file.
    if !blob.exists() {
        let part = cache.blob(&format!("{}.part", metadata.etag));
        let download = Download { repo, client, name, url: &url, part: &part, size: metadata.size, progress };
        download.run()?;
        fs::rename(&part, &blob).map_err(io_error("rename", &part))?;
    }
    cache.link(commit, name, &metadata.etag)
}

/// Locks a file, and says so if another process has it. The lock ends with the file.
fn wait_for(lock: &File, path: &Path, name: &str, progress: &dyn Progress) -> Result<()> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            progress.start(&format!("waiting for another download of {name}"), None);
            let locked = lock.lock().map_err(io_error("lock", path));
            progress.finish();
            locked
        }
        Err(TryLockError::Error(source)) => Err(io_error("lock", path)(source)),
    }
}

/// A file on its way.
struct Download<'a> {
    repo: &'a Repo<'a>,
    client: &'a Client,
    name: &'a str,
    url: &'a str,
    /// What has arrived so far.
    part: &'a Path,
    /// Bytes of the whole.
    size: u64,
    progress: &'a dyn Progress,
}

impl Download<'_> {
    /// Downloads until the file is complete, going on after broken connections.
    fn run(&self) -> Result<()> {
        let mut file =
            OpenOptions::new().create(true).append(true).open(self.part).map_err(io_error("open", self.part))?;
        let mut have = file.metadata().map_err(io_error("open", self.part))?.len();
        if have > self.size {
            self.restart(&mut file, &mut have)?;
        }
        self.progress.start(self.name, Some(self.size));
        self.progress.advance(have);
        let result = self.attempts(&mut file, &mut have);
        self.progress.finish();
        result?;
        file.sync_all().map_err(io_error("write", self.part))
    }

    fn attempts(&self, file: &mut File, have: &mut u64) -> Result<()> {
        let mut idle = 0;
        while *have < self.size {
            let before = *have;
            let Err(broken) = self.attempt(file, have)? else { continue };
            idle = if *have > before { 0 } else { idle + 1 };
            if idle == MAX_IDLE_ATTEMPTS {
                return Err(HubError::DownloadBroken {
                    name: self.name.to_owned(),
                    received: *have,
                    size: self.size,
                    reason: broken,
                }
                .into());
            }
            thread::sleep(FIRST_PAUSE * 2u32.pow(idle));
        }
        Ok(())
    }

    /// One request. The inner error is a reason to try again, the outer one is final.
    fn attempt(&self, file: &mut File, have: &mut u64) -> Result<Result<(), String>> {
        let response = match self.client.get_from(self.url, *have) {
            Ok(response) => response,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {have}-")) || !range.ends_with(&format!("/{}", self.size)) {
                    return Err(strange(self.url, format!("asked for bytes {have}-, got {range:?} of {}", self.size)));
                }
            }
            // The server does not know ranges and sends everything.
            StatusCode::OK if *have > 0 => self.restart(file, have)?,
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => return Ok(Err(status.to_string())),
            _ if status.is_server_error() => return Ok(Err(status.to_string())),
            _ => {
                self.client.check_status(self.repo, self.url, status)?;
                return Err(HubError::Status { url: self.url.to_owned(), status: status.as_u16() }.into());
            }
        }
        self.receive(response.into_body().into_reader(), file, have)
    }

    /// Writes what arrives to the file, up to its full size.
    fn receive(&self, body: impl Read, file: &mut File, have: &mut u64) -> Result<Result<(), String>> {
        let mut body = body.take(self.size - *have);
        let mut chunk = vec![0; CHUNK];
        while *have < self.size {
            let n = match body.read(&mut chunk) {
                Ok(0) => return Ok(Err("the connection was closed too early".to_owned())),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Err(error.to_string())),
            };
            file.write_all(&chunk[..n]).map_err(io_error("write", self.part))?;
            *have += n as u64;
            self.progress.advance(n as u64);
            if !self.progress.go_on() {
                return Err(Error::Interrupted);
            }
        }
        Ok(Ok(()))
    }

    /// Drops what has arrived.
    fn restart(&self, file: &mut File, have: &mut u64) -> Result<()> {
        file.set_len(0).map_err(io_error("write", self.part))?;
        if *have > 0 && *have <= self.size {
            self.progress.finish();
            self.progress.start(self.name, Some(self.size));
        }
        *have = 0;
        Ok(())
    }
}
