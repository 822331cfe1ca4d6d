//! Digests of a checkpoint's files, and of the weights that it lacks because they are not trained: a byte that a disk or a copy has
//! changed, or another model in the place of the first, is an error, and not the beginning of another run.

use std::collections::BTreeMap;
use std::fs;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;

use colrow_autograd::Params;
use colrow_models::files::{self, io_error};
use colrow_tensor::{Error, Result, Tensor, Weight};
use twox_hash::XxHash64;

/// XXH64 of files by their names, in hexadecimal. Empty for a checkpoint of a version that wrote none.
pub(crate) type Digests = BTreeMap<String, String>;

/// Stands for the digest of a text in that text, while it is taken.
const OPEN: &str = "0000000000000000";

fn hex(hash: &XxHash64) -> String {
    format!("{:016x}", hash.finish())
}

/// The digest of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    let mut hash = XxHash64::with_seed(0);
    hash.write(bytes);
    hex(&hash)
}

fn of_file(path: &Path) -> Result<String> {
    let failed = |e| io_error("cannot read", &e, path);
    let mut file = files::open(path).map_err(failed)?;
    let (mut hash, mut buffer) = (XxHash64::with_seed(0), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hex(&hash)),
            n => hash.write(&buffer[..n]),
        }
    }
}

/// The digests of the files in `folder`, and room for that of `text`, a file that is yet to be written.
pub(crate) fn of(folder: &Path, text: &str) -> Result<Digests> {
    let mut digests = Digests::from([(text.to_owned(), OPEN.to_owned())]);
    for entry in fs::read_dir(folder).map_err(|e| io_error("cannot list the folder", &e, folder))? {
        let entry = entry.map_err(|e| io_error("cannot list the folder", &e, folder))?;
        digests.insert(entry.file_name().to_string_lossy().into_owned(), of_file(&entry.path())?);
    }
    Ok(digests)
}

/// Numbers that are hashed at a time.
const PIECE: usize = 1 << 16;

/// The digest of all that a model holds and does not train, as it holds it. `None` if it trains everything.
pub(crate) fn of_frozen(params: &Params) -> Option<String> {
    let mut hash = XxHash64::with_seed(0);
    let mut frozen = params.iter().filter(|(_, param)| !param.trainable).peekable();
    frozen.peek()?;
    for (_, param) in frozen {
        hash.write(param.name.as_bytes());
        match &param.value {
            Weight::Dense(numbers) => add_numbers(&mut hash, numbers),
            Weight::Coded(matrix) => {
                add_codes(&mut hash, &matrix.codes);
                add_numbers(&mut hash, &matrix.scale);
                if let Some(nested) = &matrix.nested {
                    add_codes(&mut hash, &nested.codes);
                }
            }
        }
    }
    Some(hex(&hash))
}

fn add_codes(hash: &mut XxHash64, codes: &Tensor) {
    let mut piece = vec![0_u8; PIECE.min(codes.len())];
    for first in (0..codes.len()).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(codes.len() - first)];
        codes.read_range(first, piece);
        hash.write(piece);
    }
}

fn add_numbers(hash: &mut XxHash64, numbers: &Tensor) {
    let mut piece = vec![0.0_f32; PIECE.min(numbers.len())];
    for first in (0..numbers.len()).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(numbers.len() - first)];
        numbers.read_range(first, piece);
        hash.write(&piece.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
    }
}

/// `text`, the content of the file `name`, with one digest of its own in the place of another: the last there.
fn with(text: &str, name: &str, from: &str, to: &str) -> Option<String> {
    let entry = |digest: &str| format!("\"{name}\": \"{digest}\"");
    let start = text.rfind(&entry(from))?;
    Some(format!("{}{}{}", &text[..start], entry(to), &text[start + entry(from).len()..]))
}

fn of_text(text: &str) -> String {
    let mut hash = XxHash64::with_seed(0);
    hash.write(text.as_bytes());
    hex(&hash)
}

/// `text`, the content of the file `name` in which [`of`] left room, with its digest.
pub(crate) fn seal(text: String, name: &str) -> String {
    with(&text, name, OPEN, &of_text(&text)).unwrap_or(text)
}

/// Checks `text`, the content of the file `name` that holds these digests.
///
/// # Errors
/// Another text than was written.
pub(crate) fn check_text(text: &str, name: &str, digests: &Digests) -> Result<()> {
    if digests.is_empty() {
        return Ok(());
    }
    let digest = digests.get(name).map_or("", String::as_str);
    match with(text, name, digest, OPEN) {
        Some(open) if of_text(&open) == digest => Ok(()),
        _ => Err(changed()),
    }
}

/// Checks the other files of `folder`.
///
/// # Errors
/// A file that is not there or not what was written, by name.
pub(crate) fn check_files(folder: &Path, text: &str, digests: &Digests) -> Result<()> {
    for (name, digest) in digests.iter().filter(|(name, _)| *name != text) {
        let file = folder.join(name);
        if of_file(&file)? != *digest {
            return Err(changed().at(file.display()));
        }
    }
    Ok(())
}

fn changed() -> Error {
    Error::new("the file is not what was written: its digest is another")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("w");
        fs::write(&weights, [7; 3000]).unwrap();
        let digests = of(folder.path(), "s.json").unwrap();
        let text = seal(format!("{{\"step\": 3,\n\"digests\": {}}}", to_json(&digests)), "s.json");
        let read = |text: &str| from_json(text);
        assert_eq!(read(&text).keys().collect::<Vec<_>>(), ["s.json", "w"]);
        check_text(&text, "s.json", &read(&text)).unwrap();
        check_files(folder.path(), "s.json", &read(&text)).unwrap();

        check_text(&text.replace("3,", "4,"), "s.json", &read(&text)).unwrap_err();
        check_text(&text.replace("\"w\"", "\"x\""), "s.json", &read(&text)).unwrap_err();
        for at in [0, 1500, 2999] {
            let mut bytes = [7; 3000];
            bytes[at] ^= 16;
            fs::write(&weights, bytes).unwrap();
            let error = check_files(folder.path(), "s.json", &read(&text)).unwrap_err().to_string();
            assert!(error.contains("not what was written") && error.ends_with("/w"), "{error}");
        }
        // of a version that wrote none
        check_text("{}", "s.json", &Digests::new()).unwrap();
        check_files(folder.path(), "s.json", &Digests::new()).unwrap();
    }

    fn to_json(digests: &Digests) -> String {
        serde_json::to_string_pretty(digests).unwrap()
    }

    fn from_json(text: &str) -> Digests {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(value["digests"].clone()).unwrap()
    }
}
