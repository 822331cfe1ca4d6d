//! Values by regular expressions over the names of modules, as in PEFT.

use fancy_regex::Regex;

/// Values by regular expressions over modules: the first that matches a module's whole name, or an end of it after a dot, counts.
#[derive(Clone, Debug)]
pub struct Patterns<T>(pub(crate) Vec<(Regex, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> PartialEq for Patterns<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|((a, x), (b, y))| a.as_str() == b.as_str() && x == y)
    }
}

impl<T: Copy> Patterns<T> {
    /// The value for a module, if a pattern matches it.
    pub fn get(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(pattern, _)| matches(pattern, module)).map(|(_, value)| *value)
    }
}

/// A pattern that goes on for ever names nothing.
pub(crate) fn matches(pattern: &Regex, module: &str) -> bool {
    pattern.is_match(module).unwrap_or(false)
}
