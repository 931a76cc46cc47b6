//! Questions to the hub, and its answers as errors a user can act on.

use std::time::Duration;

use hf_hub::api::RepoInfo;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::{HubError, HubOptions, Repo, cache};
use crate::{Error, Result};

/// Largest JSON answer accepted.
const MAX_ANSWER: u64 = 32 << 20;
/// Redirections followed for one request.
const MAX_REDIRECTS: usize = 10;
/// Author of the pull requests that add safetensors. Anybody can open a pull request; only this one's is trusted.
const CONVERSION_BOT: &str = "SFconvertbot";
/// Title of those pull requests.
const CONVERSION_TITLE: &str = "Adding `safetensors` variant of this model";
/// Pages of discussions searched.
const MAX_PAGES: usize = 5;

/// What a revision consists of.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file without sending it.
pub(super) struct Metadata {
    /// Identifies the contents; also their name in the cache.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

/// Connections to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Discussions {
    discussions: Vec<Discussion>,
    count: usize,
    start: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Discussion {
    num: u64,
    title: String,
    status: String,
    is_pull_request: bool,
    author: Option<Author>,
}

#[derive(Deserialize)]
struct Author {
    name: Option<String>,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("shadowllm/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have neither the right length nor ranges.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Client { agent, endpoint: options.endpoint(), token: options.token.clone() }
    }

    /// Address of a file.
    pub(super) fn file_url(&self, repo: &Repo<'_>, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{name}", self.endpoint, repo.name)
    }

    /// The commit that a revision points to and its files.
    pub(super) fn listing(&self, repo: &Repo<'_>) -> Result<Listing> {
        let revision = repo.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, repo.name);
        let info: RepoInfo = self.json(repo, &url)?;
        if !cache::is_plain(&info.sha) {
            return Err(strange(&url, format!("commit {:?} is no commit", info.sha)));
        }
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// Number of the open pull request in which the conversion bot offers safetensors.
    pub(super) fn conversion_request(&self, repo: &Repo<'_>) -> Result<Option<u64>> {
        for page in 0..MAX_PAGES {
            let url = format!("{}/api/models/{}/discussions?p={page}", self.endpoint, repo.name);
            let answer: Discussions = self.json(repo, &url)?;
            let seen = answer.start + answer.discussions.len();
            let by_bot = |d: &Discussion| d.author.as_ref().and_then(|a| a.name.as_deref()) == Some(CONVERSION_BOT);
            let found = answer
                .discussions
                .iter()
                .find(|d| d.is_pull_request && d.status == "open" && d.title == CONVERSION_TITLE && by_bot(d));
            if found.is_some() || answer.discussions.is_empty() || seen >= answer.count {
                return Ok(found.map(|d| d.num));
            }
        }
        Ok(None)
    }

    /// Size and identity of a file. Large files are redirected to a storage host; their identity is in the hub's own answer.
    pub(super) fn metadata(&self, repo: &Repo<'_>, url: &str) -> Result<Metadata> {
        let linked = |headers: &HeaderMap| {
            Some((header(headers, "x-linked-etag")?.to_owned(), number(headers, "x-linked-size")?))
        };
        let response =
            self.send(Method::HEAD, url, 0, |headers| linked(headers).is_some()).map_err(|e| unreachable(url, &e))?;
        let headers = response.headers();
        let (etag, size) = match linked(headers) {
            Some(linked) => linked,
            None => {
                self.check_status(repo, url, response.status())?;
                let etag = header(headers, "etag").ok_or_else(|| strange(url, "no ETag".to_owned()))?;
                let size =
                    number(headers, "content-length").ok_or_else(|| strange(url, "no Content-Length".to_owned()))?;
                (etag.to_owned(), size)
            }
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !cache::is_plain(&etag) {
            return Err(strange(url, format!("ETag {etag:?} cannot be a file name")));
        }
        Ok(Metadata { etag, size })
    }

    /// Asks for a file from byte `start` on. Any status; network failures are for the caller to retry.
    pub(super) fn get_from(&self, url: &str, start: u64) -> Result<Response<Body>, ureq::Error> {
        self.send(Method::GET, url, start, |_| false)
    }

    /// Sends a request and follows redirections until `enough`. The token goes only to the host it was meant for: the storage
    /// behind a redirection has its own signed addresses. A redirection that leads nowhere is returned as it is.
    fn send(
        &self,
        method: Method,
        url: &str,
        start: u64,
        enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut at = url.to_owned();
        let mut redirections = 0;
        loop {
            let mut request = Request::builder().method(&method).uri(&at);
            if let Some(token) = self.token.as_ref().filter(|_| same_host(url, &at)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = self.agent.run(request.body(())?)?;
            if !response.status().is_redirection() || enough(response.headers()) || redirections == MAX_REDIRECTS {
                return Ok(response);
            }
            match header(response.headers(), "location").and_then(|target| redirected(&at, target)) {
                Some(target) => at = target,
                None => return Ok(response),
            }
            redirections += 1;
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, repo: &Repo<'_>, url: &str) -> Result<T> {
        let response = self.get_from(url, 0).map_err(|e| unreachable(url, &e))?;
        self.check_status(repo, url, response.status())?;
        let bytes = response
            .into_body()
            .into_with_config()
            .limit(MAX_ANSWER)
            .read_to_vec()
            .map_err(|e| unreachable(url, &e))?;
        serde_json::from_slice(&bytes).map_err(|e| strange(url, e.to_string()))
    }

    /// Turns a refusal into its reason.
    pub(super) fn check_status(&self, repo: &Repo<'_>, url: &str, status: StatusCode) -> Result<()> {
        let name = repo.name.to_owned();
        match status.as_u16() {
            200..=299 => Ok(()),
            status @ (401 | 403) => Err(HubError::Denied {
                advice: if self.token.is_some() {
                    format!("the token given may not read it; ask for access at {}/{name}", self.endpoint)
                } else {
                    "check the name, or set HF_TOKEN to a token that may read it".to_owned()
                },
                repo: name,
                status,
            }
            .into()),
            404 => Err(HubError::NotOnHub {
                repo: name,
                revision: repo.revision.to_owned(),
                endpoint: self.endpoint.clone(),
            }
            .into()),
            status => Err(HubError::Status { url: url.to_owned(), status }.into()),
        }
    }
}

/// An [`HubError::Unreachable`].
pub(super) fn unreachable(url: &str, error: &dyn std::error::Error) -> Error {
    HubError::Unreachable { url: url.to_owned(), reason: error.to_string() }.into()
}

/// An [`HubError::Answer`].
pub(super) fn strange(url: &str, reason: String) -> Error {
    HubError::Answer { url: url.to_owned(), reason }.into()
}

/// A header as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    header(headers, name)?.parse().ok()
}

fn same_host(a: &str, b: &str) -> bool {
    let authority =
        |url: &str| url.parse::<Uri>().ok().and_then(|u| Some((u.scheme()?.clone(), u.authority()?.clone())));
    authority(a).is_some_and(|a| authority(b) == Some(a))
}

/// Where a `Location` leads from `base`: an address, or a path on the same host.
fn redirected(base: &str, location: &str) -> Option<String> {
    let target: Uri = location.parse().ok()?;
    if target.authority().is_some() {
        return Some(location.to_owned());
    }
    let base: Uri = base.parse().ok()?;
    location.starts_with('/').then(|| Some(format!("{}://{}{location}", base.scheme()?, base.authority()?)))?
}
