//! From what a user calls a model to a local folder with its files: which of the two it is, a folder or a name on the hub.

mod cache;
mod client;
mod failure;
mod fetch;
mod folder;
#[cfg(test)]
mod testing;

use std::env;
use std::path::{Path, PathBuf};

use colrow_tensor::{Error, Result};

use self::fetch::Hub;
use super::names::{CONFIG_FILE, RECIPE};
use crate::families::FAMILIES;
use crate::family::Family;

const PASS_A_FOLDER: &str =
    "pass a local folder that holds config.json, model.safetensors and tokenizer.json, or check the name";

/// What of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// `config.json` and `tokenizer.json`: enough to plan.
    ConfigAndTokenizer,
    /// These and the weights.
    Weights,
}

/// The local folder of `model`: that folder itself, or the cached or freshly fetched files of the hub repository of that name.
///
/// `revision` is a branch, tag or commit of the repository ("main" if in doubt) and means nothing for a local folder. What the cache
/// holds of a revision is used without asking the hub again. What [`Config::open`](crate::config::Config::open) refuses is refused
/// before any other file is asked for. `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_TOKEN_PATH` mean
/// what they mean to `transformers`.
pub fn resolve(model: &str, revision: &str, needs: Needs) -> Result<PathBuf> {
    resolve_of(FAMILIES, model, revision, needs)
}

/// As [`resolve`], of a model of one of `families`.
///
/// # Errors
/// As there.
pub fn resolve_of(families: &[&'static Family], model: &str, revision: &str, needs: Needs) -> Result<PathBuf> {
    let path = match (model.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(model),
    };
    let path = of_run(&path);
    if path.is_dir() {
        folder::check(families, &path, needs)?;
        return Ok(path);
    }
    if path.exists() {
        return Err(Error::new("expected a model folder, found a file").at(path.display()).hint(
            match folder::is_gguf(model) {
                true => folder::IMPORT,
                false => "pass the folder that holds config.json, model.safetensors and tokenizer.json",
            },
        ));
    }
    if model.starts_with(['.', '/', '~']) || model.split('/').count() > 2 || model.contains('\\') {
        return Err(Error::new(format!("no such folder: {model}")));
    }
    if !is_hub_name(model) {
        return Err(
            Error::new(format!("neither a folder nor the name of a hub repository: {model:?}")).hint(PASS_A_FOLDER)
        );
    }
    if !is_revision(revision) {
        return Err(Error::new(format!("expected a branch, tag or commit, found the revision {revision:?}")));
    }
    Hub::from_env(families)?.resolve(model, revision, needs)
}

/// The model's folder of a run's folder; any other path is itself.
pub fn of_run(path: &Path) -> PathBuf {
    let is_run = path.join(RECIPE).exists() && !path.join(CONFIG_FILE).exists();
    let model = path.join("model");
    if is_run && model.is_dir() { model } else { path.to_owned() }
}

/// `name` or `owner/name`, of letters, digits and `-_.`.
fn is_hub_name(model: &str) -> bool {
    model.len() <= 200
        && model.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.contains("..")
        })
}

/// Something that is a path within the cache and part of an address as it stands.
fn is_revision(revision: &str) -> bool {
    revision.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::testing::{GPT2, fails, folder, folder_of};
    use super::*;
    use crate::checkpoint::names::{INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE};

    #[test]
    fn a_local_folder_is_used_as_it_is() {
        let dir = folder(&[CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE]);
        assert_eq!(resolve(dir.path().to_str().unwrap(), "main", Needs::Weights).unwrap(), dir.path());
        let dir = folder(&[CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE]);
        assert_eq!(resolve(dir.path().to_str().unwrap(), "main", Needs::Weights).unwrap(), dir.path());
    }

    #[test]
    fn another_family_is_named_before_what_else_is_missing() {
        let dir = folder_of(&[(CONFIG_FILE, GPT2), ("pytorch_model.bin", "")]);
        for needs in [Needs::ConfigAndTokenizer, Needs::Weights] {
            fails(resolve(dir.path().to_str().unwrap(), "main", needs), &["another family: found model_type \"gpt2\""]);
        }
    }

    #[test]
    fn paths_that_do_not_exist_are_named() {
        for path in ["./absent", "/absent/model", "../absent", "~/absent-model", "a/b/c", "absent\\model"] {
            fails(resolve(path, "main", Needs::Weights), &["no such folder", path]);
        }
        let dir = folder(&["a file"]);
        fails(
            resolve(dir.path().join("a file").to_str().unwrap(), "main", Needs::Weights),
            &["expected a model folder, found a file"],
        );
        let dir = folder(&["x.Q4_K_M.gguf"]);
        for path in [dir.path().to_owned(), dir.path().join("x.Q4_K_M.gguf")] {
            fails(resolve(path.to_str().unwrap(), "main", Needs::Weights), &["colrow import FILE --out DIR"]);
        }
    }

    #[test]
    fn names_that_cannot_be_on_the_hub_are_named() {
        for name in ["", "org/", "a b", "org/na..me", "-x", "org/naïve", "a?b"] {
            fails(resolve(name, "main", Needs::Weights), &["neither a folder nor the name"]);
        }
        for revision in ["", "../x", "a b", "/main", "a//b"] {
            fails(resolve("org/name", revision, Needs::Weights), &["expected a branch, tag or commit"]);
        }
        assert!(is_revision("refs/pr/1") && is_hub_name("google-bert/bert-base_uncased.v1"));
    }
}
