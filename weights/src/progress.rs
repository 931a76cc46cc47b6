//! How long work tells whoever waits for it.
//!
//! A download and an import take minutes. The library never prints, so it reports through this trait; the command line draws
//! a bar from it, and a caller who does not care passes `&()`.

/// Receiver of progress reports. Phases do not overlap: every `start` is followed by any number of `advance` and one `finish`.
pub trait Progress {
    /// A phase begins; `what` names it for a person, `total_bytes` is its size if known.
    fn start(&self, what: &str, total_bytes: Option<u64>);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// The phase ended.
    fn finish(&self);
    /// Whether to go on; asked after every `advance`. When it says no, the work ends with
    /// [`Error::Interrupted`](crate::Error::Interrupted) and leaves what an error leaves: nothing half-made, and of a
    /// download what has arrived, to go on from.
    fn go_on(&self) -> bool {
        true
    }
}

/// Reports nothing.
impl Progress for () {
    fn start(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}
