//! Whether a local folder holds the files of a model. It fetches none.

use std::path::Path;

use colrow_tensor::{Error, Result};

use super::Needs;
use crate::checkpoint::elsewhere::instead_of_model;
use crate::checkpoint::names::{CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::config::Config;
use crate::family::Family;
use crate::files::{first_ten, io_error};

/// Checks that a folder holds the files of a model that can be used here; the error names what is missing and what is there instead.
pub(super) fn check(families: &[&'static Family], dir: &Path, needs: Needs) -> Result<()> {
    let has = |name: &str| dir.join(name).exists();
    // what no conversion of files mends comes first
    if has(CONFIG_FILE) {
        Config::open_of(families, dir)?;
    }
    let mut missing = Vec::new();
    let mut hint = None;
    if !has(CONFIG_FILE) {
        missing.push(CONFIG_FILE);
    }
    if needs == Needs::Weights && !has(WEIGHTS_FILE) && !has(INDEX_FILE) {
        missing.push(WEIGHTS_FILE);
        let others = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];
        hint = others.into_iter().find(|name| has(name)).map(|name| {
            format!("convert {name} to safetensors: load it in transformers and save_pretrained(..) it again")
        });
    }
    if !has(TOKENIZER_FILE) {
        missing.push(TOKENIZER_FILE);
        if has("vocab.txt") && hint.is_none() {
            hint = Some(
                "make tokenizer.json from vocab.txt: AutoTokenizer.from_pretrained(..).save_pretrained(..) in transformers"
                    .to_string(),
            );
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(error) = instead_of_model(dir) {
        return Err(error);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| io_error("cannot read the model folder", &e, dir))?;
    let mut present: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    present.sort();
    if present.iter().any(|name| is_gguf(name)) {
        hint.get_or_insert_with(|| IMPORT.to_string());
    }
    let present = if present.is_empty() { "nothing".to_string() } else { first_ten(&present) };
    let error = Error::new(format!("expected {}, found {present}", missing.join(" and "))).at(dir.display());
    Err(match hint {
        Some(hint) => error.hint(hint),
        None => error.hint("a model folder holds config.json, model.safetensors and tokenizer.json"),
    })
}

/// What to do with a GGUF file.
pub(super) const IMPORT: &str = "make a model folder of the GGUF file: colrow import FILE --out DIR";

pub(super) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fails, folder};
    use super::*;
    use crate::families::FAMILIES;

    #[test]
    fn missing_files_are_named() {
        let weights = |files: &[&str]| check(FAMILIES, folder(files).path(), Needs::Weights);
        fails(weights(&[]), &["expected config.json and model.safetensors and tokenizer.json, found nothing"]);
        fails(
            weights(&[WEIGHTS_FILE, TOKENIZER_FILE]),
            &["expected config.json, found model.safetensors, tokenizer.json"],
        );
        fails(
            weights(&[CONFIG_FILE, TOKENIZER_FILE, "pytorch_model.bin"]),
            &[
                "expected model.safetensors, found config.json, pytorch_model.bin, tokenizer.json",
                "hint: convert pytorch_model.bin to safetensors",
            ],
        );
        fails(weights(&[CONFIG_FILE, WEIGHTS_FILE, "vocab.txt"]), &["expected tokenizer.json", "from vocab.txt"]);
        check(FAMILIES, folder(&[CONFIG_FILE, TOKENIZER_FILE]).path(), Needs::ConfigAndTokenizer).unwrap();
        fails(
            check(FAMILIES, folder(&[CONFIG_FILE, WEIGHTS_FILE]).path(), Needs::ConfigAndTokenizer),
            &["expected tokenizer.json, found"],
        );
    }
}
