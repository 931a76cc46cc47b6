//! Standard output, standard error, progress bars, Ctrl-C.

use std::cell::RefCell;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shadowllm_weights::Progress;

use crate::{Error, Result};

/// What a Ctrl-C does now. One word, so that the handler needs no lock.
#[derive(Debug, Default)]
struct Interrupt {
    state: AtomicU8,
}

impl Interrupt {
    /// Nothing would be left half-done: the program ends at once.
    const ENDS: u8 = 0;
    /// Somebody asks [`Interrupt::go_on`] and ends in good order.
    const HEEDED: u8 = 1;
    /// Ctrl-C was pressed while it is heeded.
    const PRESSED: u8 = 2;

    fn go_on(&self) -> bool {
        self.state.load(Ordering::Relaxed) != Self::PRESSED
    }

    /// Ctrl-C was pressed: whether the program has to end now.
    fn press(&self) -> bool {
        let change = |from, to| self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        change(Self::HEEDED, Self::PRESSED).is_err()
    }
}

/// While it lives, the first Ctrl-C is noted for [`Heeded::go_on`] and only a second one ends the program.
#[derive(Debug)]
pub(crate) struct Heeded {
    interrupt: Arc<Interrupt>,
}

impl Heeded {
    fn new(interrupt: &Arc<Interrupt>) -> Self {
        interrupt.state.store(Interrupt::HEEDED, Ordering::Relaxed);
        Heeded { interrupt: Arc::clone(interrupt) }
    }

    /// False once the user has pressed Ctrl-C.
    pub(crate) fn go_on(&self) -> bool {
        self.interrupt.go_on()
    }
}

impl Drop for Heeded {
    fn drop(&mut self) {
        self.interrupt.state.store(Interrupt::ENDS, Ordering::Relaxed);
    }
}

/// Where a command writes.
pub(crate) struct Console {
    out: io::Stdout,
    interrupt: Arc<Interrupt>,
}

impl Console {
    pub(crate) fn new() -> Self {
        let interrupt = Arc::new(Interrupt::default());
        let pressed = Arc::clone(&interrupt);
        // Without a handler Ctrl-C ends the program at once, which is nearly the same.
        let _ = ctrlc::set_handler(move || {
            if pressed.press() {
                let _ = writeln!(io::stderr(), "interrupted");
                std::process::exit(i32::from(super::EXIT_INTERRUPTED));
            }
        });
        Console { out: io::stdout(), interrupt }
    }

    /// From here until the result is dropped Ctrl-C does not end the program but is to be asked for.
    pub(crate) fn heed_interrupts(&self) -> Heeded {
        Heeded::new(&self.interrupt)
    }

    /// Writes text to standard output as it is and flushes it.
    pub(crate) fn text(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(stdout_error)
    }

    /// Writes a line to standard output.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").map_err(stdout_error)
    }

    /// Writes one JSON document to standard output.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| stdout_error(e.into()))?;
        self.line(&text)
    }

    /// Writes a line to standard error; a closed standard error is no reason to fail.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Shows `prompt` if a person is typing and reads one line; `None` at the end of input.
    pub(crate) fn ask(&mut self, prompt: &str) -> Result<Option<String>> {
        if self.is_interactive() {
            self.text(prompt)?;
        }
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        let read = read.map_err(|source| Error::Io { action: "read", path: "standard input".into(), source })?;
        Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
    }

    /// A bar for work that is counted in bytes.
    pub(crate) fn bytes_progress(&self) -> BytesProgress {
        BytesProgress { bar: RefCell::new(None), heeded: self.heed_interrupts() }
    }

    /// Whether a person types the input.
    pub(crate) fn is_interactive(&self) -> bool {
        io::stdin().is_terminal()
    }

    /// A bar over `total` units on standard error; invisible if that is no terminal.
    pub(crate) fn bar(&self, total: u64, template: &'static str) -> ProgressBar {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }
}

fn stdout_error(source: io::Error) -> Error {
    Error::Io { action: "write to", path: "standard output".into(), source }
}

/// Whether the reader of our output went away, as in `shadowllm ... | head`.
pub(crate) fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// Reads a text file; `-` is standard input.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return io::read_to_string(io::stdin()).map_err(|source| Error::Io {
            action: "read",
            path: "standard input".into(),
            source,
        });
    }
    std::fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

/// Shows downloads and imports as a bar; Ctrl-C ends them.
pub(crate) struct BytesProgress {
    bar: RefCell<Option<ProgressBar>>,
    heeded: Heeded,
}

const BYTES: &str = "{msg:30!} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const BYTES_UNKNOWN: &str = "{msg:30!} {bytes} {bytes_per_sec}";

impl Progress for BytesProgress {
    fn start(&self, what: &str, total_bytes: Option<u64>) {
        let bar = total_bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let template = if total_bytes.is_some() { BYTES } else { BYTES_UNKNOWN };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        self.bar.replace(Some(bar));
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    fn go_on(&self) -> bool {
        self.heeded.go_on()
    }
}
