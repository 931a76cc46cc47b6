//! How far a measurement is, for whoever waits for it.

use std::ops::ControlFlow;

use indicatif::ProgressBar;

use crate::cli::console::{Console, Heeded};

/// A bar over all tokens to decode, and whether Ctrl-C was pressed.
pub(super) struct Watch {
    bar: ProgressBar,
    heeded: Heeded,
}

const TOKENS: &str = "{msg:34!} [{bar:30}] {pos}/{len} tokens {elapsed} {eta}";

impl Watch {
    pub(super) fn new(console: &Console, tokens: u64) -> Self {
        Watch { bar: console.bar(tokens, TOKENS), heeded: console.heed_interrupts() }
    }

    /// What is being done now.
    pub(super) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// A token is done.
    pub(super) fn advance(&self) {
        self.bar.inc(1);
    }

    /// False once the user has pressed Ctrl-C.
    pub(super) fn go_on(&self) -> bool {
        self.heeded.go_on()
    }

    /// [`Watch::go_on`] for callbacks.
    pub(super) fn flow(&self) -> ControlFlow<()> {
        if self.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
