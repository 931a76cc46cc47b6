//! The environment variables that every Hugging Face tool honours.

use std::fmt;
use std::path::PathBuf;

use super::HubError;
use crate::Result;

/// How to reach the hub and where to keep what comes from it.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Cache folder, the one that holds `models--org--name` folders. `None`: none could be determined.
    pub cache: Option<PathBuf>,
    /// Address of the hub; `None` for `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Access token for private and gated models.
    pub token: Option<String>,
    /// Never touch the network.
    pub offline: bool,
}

impl HubOptions {
    /// From the environment: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `XDG_CACHE_HOME/huggingface/hub`, else
    /// `~/.cache/huggingface/hub`; `HF_ENDPOINT`; `HF_TOKEN`, else the file that `hf auth login` writes; `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok().filter(|value| !value.is_empty()), std::env::home_dir())
    }

    fn from_lookup(var: impl Fn(&str) -> Option<String>, home_dir: Option<PathBuf>) -> Self {
        let path = |name: &str| var(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| home_dir.map(|home| home.join(".cache/huggingface")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")));
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        HubOptions {
            cache: path("HF_HUB_CACHE").or_else(|| home.map(|home| home.join("hub"))),
            endpoint: var("HF_ENDPOINT"),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: var("HF_HUB_OFFLINE")
                .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")),
        }
    }

    /// # Errors
    /// [`HubError::NoCacheDirectory`].
    pub(super) fn cache_directory(&self) -> Result<PathBuf> {
        self.cache.clone().ok_or(HubError::NoCacheDirectory.into())
    }

    /// Address of the hub without a slash at the end.
    pub(super) fn endpoint(&self) -> String {
        self.endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/').to_owned()
    }
}

/// Does not show the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        HubOptions::from_lookup(var, Some("/home/u".into()))
    }

    #[test]
    fn cache_folder() {
        for (vars, expected) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")], "/c"),
        ] {
            assert_eq!(options(vars).cache_directory().unwrap(), PathBuf::from(expected));
        }
        let none = HubOptions::from_lookup(|_| None, None);
        assert_eq!(
            none.cache_directory().unwrap_err().to_string(),
            "no home directory to keep downloaded models in; set HF_HOME or HF_HUB_CACHE"
        );
    }

    #[test]
    fn offline_words() {
        for (value, expected) in [("1", true), ("true", true), ("ON", true), ("0", false), ("no", false)] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value}");
        }
        assert!(!options(&[]).offline);
    }

    #[test]
    fn token_from_variable_and_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(options(&[("HF_HOME", path)]).token, None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(options(&[("HF_HOME", path)]).token.as_deref(), Some("hf_file"));
        assert_eq!(options(&[("HF_HOME", path), ("HF_TOKEN", "hf_var ")]).token.as_deref(), Some("hf_var"));
        assert!(!format!("{:?}", options(&[("HF_TOKEN", "hf_secret")])).contains("secret"));
    }

    #[test]
    fn endpoint() {
        assert_eq!(options(&[]).endpoint(), "https://huggingface.co");
        assert_eq!(options(&[("HF_ENDPOINT", "http://mirror/")]).endpoint(), "http://mirror");
    }
}
