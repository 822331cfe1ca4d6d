//! Writing a folder that `transformers` (a model) or PEFT (an adapter) loads.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use colrow_tensor::{Error, Result};

use crate::atomic::{replace_dir_atomic, write_file_atomic};
use crate::config::Config;
use crate::files::{first_ten, io_error, read_json_bytes};
use crate::hub::{CONFIG_FILE, OTHER_TOKENIZER_FILES, TOKENIZER_FILE};
use crate::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};
use crate::weights::{Saved, WEIGHTS_FILE, write};

/// What a model's run was told and other programs have no use for, in the model's folder; see `Usage` of the training crate.
pub const USAGE_FILE: &str = "colrow.json";

/// Writes `config.json`, `model.safetensors`, the tokenizer's files of `tokenizer_source` and `usage` to the folder `dir`, which is
/// replaced whole or not at all. A folder there that holds anything but such files is left alone, and that is an error.
pub fn save_model_folder(
    dir: &Path,
    config: &Config,
    tensors: &[Saved<'_>],
    tokenizer_source: &Path,
    usage: Option<String>,
) -> Result<()> {
    save(dir, (CONFIG_FILE, config.to_json()), usage, WEIGHTS_FILE, tensors, tokenizer_source)
}

/// As [`save_model_folder`] for an adapter: `adapter_config.json` with `settings` and `adapter_model.safetensors`, but no `config.json`:
/// `transformers` would take the folder for a whole model's. The labels are in `usage`.
///
/// # Errors
/// As there.
pub fn save_adapter_folder(
    dir: &Path,
    settings: String,
    tensors: &[Saved<'_>],
    tokenizer_source: &Path,
    usage: Option<String>,
) -> Result<()> {
    save(dir, (ADAPTER_CONFIG_FILE, settings), usage, ADAPTER_WEIGHTS_FILE, tensors, tokenizer_source)
}

/// The bytes of a folder's [`USAGE_FILE`]; `None` if it has none.
///
/// # Errors
/// A file that cannot be read, or is too large to be one.
pub fn usage_text(dir: &Path) -> Result<Option<Vec<u8>>> {
    let path = dir.join(USAGE_FILE);
    if path.symlink_metadata().is_ok() { read_json_bytes(&path).map(Some) } else { Ok(None) }
}

fn save(
    dir: &Path,
    config: (&str, String),
    usage: Option<String>,
    weights: &str,
    tensors: &[Saved<'_>],
    tokenizer_source: &Path,
) -> Result<()> {
    check_replaceable(dir)?;
    replace_dir_atomic(dir, |new| {
        for (name, text) in std::iter::once(config).chain(usage.map(|text| (USAGE_FILE, text))) {
            write_file_atomic(&new.join(name), |file| {
                file.write_all(text.as_bytes()).map_err(|e| io_error("cannot write", &e, &dir.join(name)))
            })?;
        }
        write(&new.join(weights), tensors, &[])?;
        copy(TOKENIZER_FILE, tokenizer_source, new)?;
        for name in OTHER_TOKENIZER_FILES {
            if tokenizer_source.join(name).exists() {
                copy(name, tokenizer_source, new)?;
            }
        }
        Ok(())
    })
}

fn copy(name: &str, from: &Path, to: &Path) -> Result<()> {
    let from = from.join(name);
    fs::copy(&from, to.join(name)).map(drop).map_err(|e| io_error("cannot copy", &e, &from))
}

/// Replacing a folder deletes what is in it, so it has to be a model folder and nothing else.
fn check_replaceable(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("cannot write the model folder", &e, dir)),
    };
    let ours = |name: &str| {
        let own = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, USAGE_FILE];
        own.contains(&name) || OTHER_TOKENIZER_FILES.contains(&name)
    };
    let mut others: Vec<_> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).filter(|name| !ours(name)).collect();
    if others.is_empty() {
        return Ok(());
    }
    others.sort();
    Err(Error::new(format!("this folder would be replaced, but holds more than a model: {}", first_ten(&others)))
        .at(dir.display())
        .hint("choose another folder, or move these away"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Data, Weights};

    fn config() -> Config {
        let json = br#"{"model_type":"bert","hidden_size":2,"num_hidden_layers":1,"num_attention_heads":1,
            "intermediate_size":2,"vocab_size":3,"kept":true}"#;
        Config::from_json(json, Path::new("config.json")).unwrap()
    }

    fn save(dir: &Path, value: f32, source: &Path) -> Result<()> {
        let data = [value];
        let tensor = Saved { name: "a".to_string(), shape: vec![1], data: Data::F32(&data) };
        save_model_folder(dir, &config(), &[tensor], source, None)
    }

    fn saved(dir: &Path) -> f32 {
        let mut out = [0.0];
        Weights::open(dir).unwrap().read("a", &mut out).unwrap();
        out[0]
    }

    fn source() -> tempfile::TempDir {
        let source = tempfile::tempdir().unwrap();
        for name in [TOKENIZER_FILE, "vocab.txt", "notes.txt"] {
            fs::write(source.path().join(name), name).unwrap();
        }
        source
    }

    #[test]
    fn a_folder_has_all_that_is_needed() {
        let (source, runs) = (source(), tempfile::tempdir().unwrap());
        let dir = runs.path().join("model");
        for value in [1.0, 2.0] {
            save(&dir, value, source.path()).unwrap();
            assert_eq!(saved(&dir), value);
        }
        let mut names: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]);
        assert_eq!(fs::read_to_string(dir.join("vocab.txt")).unwrap(), "vocab.txt");
        assert!(fs::read_to_string(dir.join("config.json")).unwrap().contains("\"kept\": true"));
        assert_eq!(Config::open(&dir).unwrap().labels, config().labels);
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
        // The tokenizer may come from the very folder that is replaced.
        save(&dir, 3.0, &dir).unwrap();
        assert_eq!(saved(&dir), 3.0);
    }

    #[test]
    fn a_failure_leaves_the_old_folder() {
        let (source, runs) = (source(), tempfile::tempdir().unwrap());
        let dir = runs.path().join("model");
        save(&dir, 1.0, source.path()).unwrap();
        let e = save(&dir, 2.0, &runs.path().join("absent")).unwrap_err().to_string();
        assert!(e.contains("cannot copy") && e.contains("absent/tokenizer.json"), "{e}");
        assert_eq!(saved(&dir), 1.0);
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_never_deleted() {
        let (source, dir) = (source(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let e = save(dir.path(), 1.0, source.path()).unwrap_err().to_string();
        assert!(e.contains("holds more than a model: thesis.tex") && e.contains("choose another folder"), "{e}");
        assert!(dir.path().join("thesis.tex").exists());
        let file = dir.path().join("thesis.tex");
        assert!(save(&file, 1.0, source.path()).unwrap_err().what().contains("cannot write the model folder"));
    }
}
