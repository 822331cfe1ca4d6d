//! Writing a folder that `transformers` (a model) or PEFT (an adapter) loads.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use colrow_tensor::{Error, Result};

use super::names::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE, USAGE_FILE, WEIGHTS_FILE};
use super::safetensors::{Saved, write};
use super::weights::Dtype;
use crate::atomic::{replace_dir_atomic, write_atomic};
use crate::config::Config;
use crate::families::FAMILIES;
use crate::family::Family;
use crate::files::{self, first_ten, io_error, read_json_bytes};

/// Writes `config.json`, `model.safetensors`, the tokenizer's files of `tokenizer_source` and `usage` to the folder `dir`, which is
/// replaced whole or not at all. A folder there that holds anything but such files is left alone, and that is an error.
pub fn save_model_folder(
    dir: &Path,
    config: &Config,
    tensors: &[Saved<'_>],
    tokenizer_source: &Path,
    usage: Option<String>,
) -> Result<()> {
    let in_bf16 = tensors.iter().any(|tensor| tensor.data.dtype() == Dtype::BF16);
    let config_json = if in_bf16 { config.to_json_of_bf16() } else { config.to_json() };
    let files = [(CONFIG_FILE, Some(config_json)), (USAGE_FILE, usage)];
    save(dir, config.family(), files, (WEIGHTS_FILE, tensors), tokenizer_source)
}

/// As [`save_model_folder`] for the adapter of a model of `family`: `adapter_config.json` with `settings` and `adapter_model.safetensors`, but no `config.json`:
/// `transformers` would take the folder for a whole model's. The labels are in `usage`.
///
/// # Errors
/// As there.
pub fn save_adapter_folder(
    dir: &Path,
    family: &Family,
    settings: String,
    tensors: &[Saved<'_>],
    tokenizer_source: &Path,
    usage: Option<String>,
) -> Result<()> {
    let files = [(ADAPTER_CONFIG_FILE, Some(settings)), (USAGE_FILE, usage)];
    save(dir, family, files, (ADAPTER_WEIGHTS_FILE, tensors), tokenizer_source)
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
    family: &Family,
    files: [(&str, Option<String>); 2],
    (weights, tensors): (&str, &[Saved<'_>]),
    tokenizer_source: &Path,
) -> Result<()> {
    check_replaceable(dir, family)?;
    replace_dir_atomic(dir, |new| {
        for (name, text) in files.into_iter().filter_map(|(name, text)| Some((name, text?))) {
            write_atomic(&new.join(name), text)?;
        }
        write(&new.join(weights), tensors, &[])?;
        taken_over(tokenizer_source, family).try_for_each(|name| copy(name, tokenizer_source, new, dir))
    })
}

/// The files that a saved model takes from the folder of the model that it comes from.
fn taken_over(source: &Path, family: &Family) -> impl Iterator<Item = &'static str> {
    let others = family.tokenizer_files.iter().copied().filter(|name| source.join(name).exists());
    std::iter::once(TOKENIZER_FILE).chain(others)
}

/// Checks what a saved model of `family` will take from the folder `source`, so that no run ends in what could be said at its start.
///
/// # Errors
/// A file that is a link out of its folder: who made the folder may have meant a file of its user's, and saved models are passed on.
/// What is no file, or cannot be read.
pub fn check_source(source: &Path, family: &Family) -> Result<()> {
    taken_over(source, family).try_for_each(|name| {
        check_inside(name, source)?;
        let file = source.join(name);
        match files::open(&file) {
            Ok(_) => Ok(()),
            Err(e) => Err(io_error("the saved model will need a copy of this file, which cannot be read", &e, &file)),
        }
    })
}

fn check_inside(name: &str, source: &Path) -> Result<()> {
    let file = source.join(name);
    let (Ok(target), Ok(folder)) = (file.canonicalize(), source.canonicalize()) else { return Ok(()) };
    // the hub's cache: snapshots/COMMIT/NAME is a link to blobs/ETAG
    let repository = folder.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
    let blobs = repository.map(|repository| repository.join("blobs"));
    if target.starts_with(&folder) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    Err(Error::new(format!(
        "a link that leads out of its folder, to {}, would be copied into the saved model",
        target.display()
    ))
    .at(file.display())
    .hint("if that file is meant, put a copy of it in the place of the link"))
}

/// Copies a file of the folder `from` to the folder `to`, which will be `target`; its mode is that of any new file.
pub(crate) fn copy(name: &str, from: &Path, to: &Path, target: &Path) -> Result<()> {
    check_inside(name, from)?;
    let source = from.join(name);
    let copied =
        files::open(&source).and_then(|mut source| io::copy(&mut source, &mut File::create_new(to.join(name))?));
    copied.map(drop).map_err(|e| io_error(&format!("cannot copy {}", source.display()), &e, &target.join(name)))
}

/// Checks that the folder `dir` can be written over by a model of `family`: replacing a folder deletes what is in it, so it has to be a model folder and nothing else,
/// or not there.
///
/// # Errors
/// A folder that holds something else.
pub fn check_replaceable(dir: &Path, family: &Family) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("cannot write the model folder", &e, dir)),
    };
    let ours = |name: &str| {
        let own = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, USAGE_FILE];
        own.contains(&name) || FAMILIES.iter().chain([&family]).any(|f| f.tokenizer_files.contains(&name))
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
    use crate::checkpoint::safetensors::Data;
    use crate::checkpoint::weights::Weights;

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

    #[cfg(unix)]
    #[test]
    fn modes_are_those_of_new_files() {
        use std::os::unix::fs::PermissionsExt;
        let (source, runs) = (source(), tempfile::tempdir().unwrap());
        fs::set_permissions(source.path().join("vocab.txt"), fs::Permissions::from_mode(0o4400)).unwrap();
        fs::write(runs.path().join("new"), "").unwrap();
        save(&runs.path().join("model"), 1.0, source.path()).unwrap();
        let mode = |name: &str| fs::metadata(runs.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("model/vocab.txt"), mode("new"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_folder_is_not_copied() {
        use std::os::unix::fs::symlink;
        let (source, runs) = (source(), tempfile::tempdir().unwrap());
        let secret = runs.path().join("secret");
        fs::write(&secret, "key").unwrap();
        symlink(&secret, source.path().join("added_tokens.json")).unwrap();
        for result in
            [check_source(source.path(), config().family()), save(&runs.path().join("model"), 1.0, source.path())]
        {
            let e = result.unwrap_err().to_string();
            assert!(
                e.contains("leads out of its folder") && e.contains("secret") && e.contains("added_tokens.json"),
                "{e}"
            );
        }
        assert!(!runs.path().join("model").exists());
        // within the folder a link is as good as a file
        fs::remove_file(source.path().join("added_tokens.json")).unwrap();
        symlink("notes.txt", source.path().join("added_tokens.json")).unwrap();
        save(&runs.path().join("model"), 1.0, source.path()).unwrap();
        assert_eq!(fs::read_to_string(runs.path().join("model/added_tokens.json")).unwrap(), "notes.txt");
        assert!(!fs::symlink_metadata(runs.path().join("model/added_tokens.json")).unwrap().is_symlink());
    }

    #[cfg(unix)]
    #[test]
    fn the_links_of_the_hubs_cache_are_its_files() {
        use std::os::unix::fs::symlink;
        let (cache, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = cache.path().join("models--org--name/snapshots/c0ffee");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(snapshot.join("../../blobs")).unwrap();
        fs::write(snapshot.join("../../blobs/abc"), "{}").unwrap();
        symlink("../../blobs/abc", snapshot.join(TOKENIZER_FILE)).unwrap();
        save(&runs.path().join("model"), 1.0, &snapshot).unwrap();
        assert_eq!(fs::read_to_string(runs.path().join("model").join(TOKENIZER_FILE)).unwrap(), "{}");
        // a content that is a link itself leads anywhere
        fs::write(runs.path().join("secret"), "key").unwrap();
        fs::remove_file(snapshot.join("../../blobs/abc")).unwrap();
        symlink(runs.path().join("secret"), snapshot.join("../../blobs/abc")).unwrap();
        assert!(check_source(&snapshot, config().family()).unwrap_err().what().contains("leads out of its folder"));
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
