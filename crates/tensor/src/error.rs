//! The one error type of the program: what went wrong, where, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::printable::{one_line, printable};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which exit code an [`Error`] ends the program with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A bad command line or recipe: exit code 2.
    Usage,
    /// A failure while running: exit code 1.
    Failure,
    /// A signal, which the program followed in good order: exit code 128 and its number.
    Stopped(u8),
}

/// An error as a user reads it. Names in it may be anybody's: what would steer a terminal is shown as its escape, and a place is one line.
///
/// ```
/// use colrow_tensor::Error;
/// let e = Error::new("expected shape (768, 768), found (1024, 1024)")
///     .at("models/bert/model.safetensors")
///     .hint("config.json says hidden_size = 768; is this the checkpoint of another size?");
/// assert!(e.to_string().contains("\n  in models/bert/model.safetensors\n  hint: "));
/// ```
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
pub struct Error {
    kind: Kind,
    what: String,
    places: Vec<String>,
    hint: Option<String>,
}

impl Error {
    /// A failure while running; `what` says what was expected and what was found.
    pub fn new(what: impl Into<String>) -> Self {
        Self { kind: Kind::Failure, what: what.into(), places: Vec::new(), hint: None }
    }

    /// A bad command line or recipe.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, ..Self::new(what) }
    }

    /// The program was asked to stop by this signal.
    pub fn stopped(signal: u8, what: impl Into<String>) -> Self {
        Self { kind: Kind::Stopped(signal), ..Self::new(what) }
    }

    /// Adds a place, innermost first: a file, a line, a site.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.places.push(place.to_string());
        self
    }

    /// With its text and its hint in other words.
    #[must_use]
    pub fn reworded(mut self, words: impl Fn(&str) -> String) -> Self {
        self.what = words(&self.what);
        self.hint = self.hint.as_deref().map(words);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what to do, unless that has been said.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Which exit code this error ends the program with.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What went wrong, without the places and the hint.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do, if it was said.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.what))?;
        for place in &self.places {
            write!(f, "\n  in {}", one_line(place))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", printable(hint))?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::new(e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_a_terminal_or_forge_a_line() {
        let e = Error::new("no column \u{1b}[31mx").at("a\n  hint: run this").hint("is \u{202e}y meant?");
        let shown = r"no column \u{1b}[31mx
  in a\n  hint: run this
  hint: is \u{202e}y meant?";
        assert_eq!(e.to_string(), shown);
    }
}
