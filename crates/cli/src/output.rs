//! All words of the program: results on standard output, everything else on standard error.
//!
//! Nothing else writes to either (a lint keeps it so), because here
//! - a standard error that is closed, full or gone ends no run: words that cannot be said are dropped;
//! - a reader of standard output that has seen enough is no failure, and a result that cannot be written is one;
//! - names in files of others cannot steer the terminal;
//! - lines go above a progress bar, not through it.

#![allow(clippy::disallowed_methods, reason = "the one place that writes to the standard streams")]

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use colrow_models::atomic;
use colrow_tensor::printable::{one_line, printable};
use colrow_tensor::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints a result as JSON.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::new(e.to_string()))?;
    write_out(|out| writeln!(out, "{text}"))
}

/// Prints a result for people.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    write_out(|out| writeln!(out, "{}", printable(text)))
}

/// Writes a result that another program reads, as it is.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn write_out(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| Error::new(format!("cannot write the result: {e}"))),
    }
}

/// Whether standard output is a terminal that shows colours (no-color.org).
pub(crate) fn takes_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether `path` stands for standard output.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Checks before the work that the page which `--out` asks for can be written, by a command whose standard output holds something else.
///
/// # Errors
/// Standard output; a file that cannot be written.
pub(crate) fn check_page(out: Option<&Path>) -> Result<()> {
    match out {
        Some(path) if is_standard(path) => {
            Err(Error::usage("--out: expected a file for the page, found -: standard output has the figures")
                .hint("name a file, such as page.html"))
        }
        Some(path) if path.file_name().is_none() => Err(Error::usage("expected the name of a file for the report")
            .at(path.display())
            .hint("such as report.html")),
        Some(path) => check_file(path, &[b"<!doctype html>"]),
        None => Ok(()),
    }
}

/// Checks before the work that a file can be written, and that what is there begins as something that this command wrote.
///
/// # Errors
/// A file that cannot be written, or is somebody's.
pub(crate) fn check_file(path: &Path, beginnings: &[&[u8]]) -> Result<()> {
    atomic::check_file(path)?;
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    if read.is_err() || start.is_empty() || beginnings.iter().any(|beginning| start.starts_with(beginning)) {
        return Ok(());
    }
    Err(Error::usage("a file is there that this command did not write, and it is not written over")
        .at(path.display())
        .hint("choose another name, or remove it"))
}

/// Whether another process of the run speaks for this one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on nothing is said on standard error: another process of the run says it, or until `false`.
pub(crate) fn be_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Says a line, or several, on standard error.
pub(crate) fn say(text: &str) {
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let text = printable(text);
    match shown_bar().as_ref() {
        Some(bar) if !bar.is_hidden() => bar.println(text),
        _ => {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Says something that the user should know.
pub(crate) fn warn(message: &str) {
    say(&format!("warning: {message}"));
}

/// The bar on the terminal.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown_bar() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A progress bar on standard error, gone when it is dropped. Shown only on a terminal; one at a time.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar `name`, `done` of `of` so far; `rest` is what indicatif's template says after the name and the bar itself.
    pub(crate) fn new(name: &str, done: u64, of: u64, rest: &str) -> Self {
        let style = ProgressStyle::with_template(&format!("{{prefix:>12}} {{bar:30}} {rest}"));
        let bar = ProgressBar::new(of).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(one_line(name).into_owned());
        bar.set_position(done);
        bar.enable_steady_tick(Duration::from_millis(500));
        *shown_bar() = Some(bar.clone());
        Self(bar)
    }

    /// Whether there is a terminal to show it on.
    pub(crate) fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// So much is done.
    pub(crate) fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    /// So much is to be done.
    pub(crate) fn of(&self, all: u64) {
        self.0.set_length(all);
    }

    /// Sets the template's `{msg}`.
    pub(crate) fn message(&self, text: &str) {
        self.0.set_message(one_line(text).into_owned());
    }
}

/// How far a command is that counts: a bar on a terminal, and elsewhere a line now and then.
pub(crate) struct Counter {
    bar: Bar,
    name: &'static str,
    what: &'static str,
    told: Instant,
}

impl Counter {
    /// Time between two lines.
    const EVERY: Duration = Duration::from_secs(10);

    /// Of the command `name`, which counts `what`.
    pub(crate) fn new(name: &'static str, what: &'static str) -> Self {
        let bar = Bar::new(name, 0, 0, &format!("{{pos}}/{{len}} {what}  {{eta}} left"));
        Self { bar, name, what, told: Instant::now() }
    }

    /// So much is done of so much.
    pub(crate) fn set(&mut self, done: u64, of: u64) {
        self.bar.of(of);
        self.bar.set(done);
        if !self.bar.is_shown() && self.told.elapsed() >= Self::EVERY {
            self.told = Instant::now();
            say(&format!("{}: {done} of {of} {}", self.name, self.what));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        *shown_bar() = None;
        self.0.finish_and_clear();
    }
}
