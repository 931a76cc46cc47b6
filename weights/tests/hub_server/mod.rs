//! A small Hugging Face hub on the loopback interface, with the faults a real one has.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Commit of the model's `main`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does.
#[derive(Default)]
pub struct Hub {
    /// Files of each revision (`main` or `refs/pr/N`), served under the revision and its commit.
    pub revisions: BTreeMap<String, Revision>,
    /// Answer of the discussions page.
    pub discussions: Option<String>,
    /// Status of every answer, instead of the right one.
    pub status: Option<u16>,
    /// Connections of downloads to cut, and the byte of the file they are cut at.
    pub cuts: usize,
    pub cut_at: usize,
    /// Answer every download with the whole file.
    pub ignore_ranges: bool,
    /// Send this `Content-Range` instead of the right one.
    pub content_range: Option<String>,
    /// Send this ETag instead of the right one.
    pub etag: Option<String>,
    /// Redirect downloads of safetensors to this address, as the hub does with large files.
    pub storage: Option<String>,
    /// Redirect everything else from this repository name, as after a renaming.
    pub renamed_from: Option<String>,
}

pub struct Revision {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
}

/// One request as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct Server {
    pub address: String,
    pub hub: Arc<Mutex<Hub>>,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (hub, log, stop) =
            (Arc::new(Mutex::new(hub)), Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (hub, log, stop) = (Arc::clone(&hub), Arc::clone(&log), Arc::clone(&stop));
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (hub, log) = (Arc::clone(&hub), Arc::clone(&log));
                    // A client that hangs up early is no fault of the server.
                    thread::spawn(move || stream.and_then(|stream| answer(stream, &hub, &log)));
                }
            }
        });
        Server { address, hub, log, stop, thread: Some(thread) }
    }

    /// Requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Ranges of the downloads (not the questions) of a file since the last call of `requests`.
    pub fn downloads(&self, name: &str) -> Vec<Option<String>> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|r| r.method == "GET" && r.path.ends_with(name)).map(|r| r.range.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn answer(mut stream: TcpStream, hub: &Mutex<Hub>, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut request = Request { method: method.to_owned(), path: path.to_owned(), range: None, authorization: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    log.lock().unwrap().push(request.clone());
    let (head, body) = respond(&mut hub.lock().unwrap(), &request);
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&body)?;
    }
    stream.flush()
}

fn plain(status: u16, headers: &str, body: Vec<u8>) -> (String, Vec<u8>) {
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    (head, body)
}

fn respond(hub: &mut Hub, request: &Request) -> (String, Vec<u8>) {
    if let Some(status) = hub.status {
        return plain(status, "", b"{}".to_vec());
    }
    let path = request.path.as_str();
    if let Some(old) = &hub.renamed_from
        && path.starts_with(&format!("/{old}/"))
    {
        return plain(307, &format!("Location: {}\r\n", path.replacen(old.as_str(), "org/tiny", 1)), Vec::new());
    }
    if path.starts_with("/api/models/org/tiny/discussions") {
        return match &hub.discussions {
            Some(json) => plain(200, "", json.clone().into_bytes()),
            None => plain(404, "", Vec::new()),
        };
    }
    let listing = path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/revision/"));
    if let Some((_, revision)) = listing {
        let Some(revision) = hub.revisions.get(&revision.replace("%2F", "/")) else {
            return plain(404, "", Vec::new());
        };
        let siblings: Vec<_> =
            revision.files.keys().map(|name| serde_json::json!({"rfilename": name, "more": 1})).collect();
        let json = serde_json::json!({"id": "org/tiny", "sha": revision.commit, "siblings": siblings});
        return plain(200, "", json.to_string().into_bytes());
    }
    let file = path.strip_prefix("/org/tiny/resolve/").or_else(|| path.strip_prefix("/storage/"));
    let Some((commit, name)) = file.and_then(|rest| rest.split_once('/')) else { return plain(404, "", Vec::new()) };
    let Some(bytes) = hub.revisions.values().find(|r| r.commit == commit).and_then(|r| r.files.get(name)).cloned()
    else {
        return plain(404, "", Vec::new());
    };
    let etag = hub.etag.clone().unwrap_or_else(|| format!("etag-{commit:.4}-{name}"));
    if let Some(storage) = hub.storage.as_ref().filter(|_| name.ends_with(".safetensors")) {
        let headers = format!(
            "Location: {storage}/storage/{commit}/{name}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {commit}\r\n",
            bytes.len()
        );
        return plain(302, &headers, Vec::new());
    }
    let total = bytes.len();
    let start: usize = match &request.range {
        Some(range) if !hub.ignore_ranges => range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
        _ => 0,
    };
    let status = if start > 0 { 206 } else { 200 };
    let range = hub.content_range.clone().unwrap_or_else(|| format!("bytes {start}-{}/{total}", total - 1));
    let content_range = if start > 0 { format!("Content-Range: {range}\r\n") } else { String::new() };
    let headers = format!("ETag: W/\"{etag}\"\r\nX-Repo-Commit: {commit}\r\n{content_range}");
    let (head, mut body) = plain(status, &headers, bytes[start..].to_vec());
    if request.method == "GET" && hub.cuts > 0 && name.ends_with(".safetensors") {
        hub.cuts -= 1;
        body.truncate(hub.cut_at.saturating_sub(start));
    }
    (head, body)
}
