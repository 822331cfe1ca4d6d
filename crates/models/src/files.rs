//! What every reader and writer of files here shares.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use colrow_tensor::{Error, Result};

/// More than any `config.json` or shard index needs; a larger file is not one.
const MOST_JSON_BYTES: u64 = 64 << 20;

/// Says what failed, where, and for the common causes what to do.
pub(crate) fn io_error(what: &str, e: &io::Error, path: &Path) -> Error {
    let error = Error::new(format!("{what}: {e}")).at(path.display());
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            error.hint("free some space, or write to another disk; nothing that was there before has been changed")
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            error.hint("may this user read and write there? otherwise choose another folder")
        }
        ErrorKind::NotFound => error.hint("does its folder exist?"),
        _ => error,
    }
}

/// Reads a whole JSON file, whose parser then says what is wrong in it.
pub(crate) fn read_json_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_JSON_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| io_error("cannot read", &e, path))?;
    if bytes.len() as u64 > MOST_JSON_BYTES {
        return Err(Error::new(format!("expected a JSON file, found one of more than {MOST_JSON_BYTES} bytes"))
            .at(path.display()));
    }
    Ok(bytes)
}

/// `(768, 384)`.
pub(crate) fn shape_text(shape: &[usize]) -> String {
    let sizes: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("({})", sizes.join(", "))
}

/// The first ten of `names`, and how many there are in all if there are more.
pub(crate) fn first_ten<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<_> = names.iter().take(10).map(AsRef::as_ref).collect();
    let more = if names.len() > 10 { format!(", … ({} in all)", names.len()) } else { String::new() };
    shown.join(", ") + &more
}

/// Property tests with the same cases in every run.
#[cfg(test)]
pub(crate) fn fixed_cases(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, RngSeed};
    Config { cases, rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..Config::default() }
}
