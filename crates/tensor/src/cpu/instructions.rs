//! Which of the processor's instructions matrix products use: all that we know and it has, or fewer if the environment says so.

use std::sync::OnceLock;

use crate::{Error, Result};

/// The environment variable that says the most that is used.
const VARIABLE: &str = "COLROW_INSTRUCTIONS";

/// What products need, each with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Instructions {
    Portable,
    Avx2,
    Avx512,
}

const NAMES: [(&str, Instructions); 3] =
    [("portable", Instructions::Portable), ("avx2", Instructions::Avx2), ("avx512", Instructions::Avx512)];

impl Instructions {
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, instructions)| *instructions == self).map_or("", |(name, _)| *name)
    }
}

fn read() -> Result<Option<Instructions>> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(None) };
    let found = NAMES.iter().find(|(name, _)| value == *name);
    found.map(|(_, most)| Some(*most)).ok_or_else(|| {
        let names = NAMES.map(|(name, _)| name).join(", ");
        Error::usage(format!("{VARIABLE}: expected one of {names}, found {value:?}"))
    })
}

/// Checks what the environment says of instructions.
///
/// # Errors
/// A name that is not known.
pub fn check_environment() -> Result<()> {
    read().map(drop)
}

/// Whether the environment keeps products to fewer than are known.
pub(super) fn are_limited() -> bool {
    most() != Instructions::Avx512
}

/// The most that is used.
pub(super) fn most() -> Instructions {
    static MOST: OnceLock<Instructions> = OnceLock::new();
    *MOST.get_or_init(|| read().ok().flatten().unwrap_or(Instructions::Avx512))
}
