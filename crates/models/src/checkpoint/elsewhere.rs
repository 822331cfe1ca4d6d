//! What a folder is that was given for a model's and is another, and what to do with it.

use std::fs;
use std::path::{Path, PathBuf};

use colrow_tensor::Error;

use super::names::{ADAPTER_CONFIG_FILE, CONFIG_FILE, RECIPE};
use crate::files::first_ten;

/// The runs whose folders are in the folder `dir`, by name.
fn runs_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut runs: Vec<_> = entries.map(|e| e.path()).filter(|path| path.join(RECIPE).is_file()).collect();
    runs.sort();
    runs
}

/// Says that `dir` is a folder of runs, if it is, where `expected` was.
pub fn folder_of_runs(dir: &Path, expected: &str) -> Option<Error> {
    let runs = runs_in(dir);
    let names: Vec<_> = runs.iter().filter_map(|run| run.file_name()?.to_str()).collect();
    let first = runs.first()?;
    Some(
        Error::new(format!("expected {expected}, found a folder of runs: {}", first_ten(&names)))
            .at(dir.display())
            .hint(format!("name one of them: {}", first.display())),
    )
}

/// Says what `dir` is if it is a run that has no model yet, a folder of runs or an adapter.
pub(crate) fn instead_of_model(dir: &Path) -> Option<Error> {
    let has = |name: &str| dir.join(name).is_file();
    if has(CONFIG_FILE) {
        return None;
    }
    if has(RECIPE) {
        let recipe = dir.join(RECIPE);
        return Some(
            Error::new("this run has no model yet: its first evaluation writes one")
                .at(dir.display())
                .hint(format!("go on with it: colrow train {} --resume", recipe.display())),
        );
    }
    if has(ADAPTER_CONFIG_FILE) {
        let run = dir.parent().map(|run| run.join(RECIPE)).filter(|recipe| recipe.is_file());
        let recipe = run.map_or_else(|| "RECIPE".into(), |recipe| recipe.display().to_string());
        return Some(Error::new("expected a whole model, found an adapter").at(dir.display()).hint(format!(
            "colrow merge --model {} --out FOLDER makes a model of it; its own run goes on by colrow train {recipe} --resume, with a larger \
             train.epochs",
            dir.display()
        )));
    }
    folder_of_runs(dir, "a model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_taken_for_models() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        };
        let told = |name: &str| {
            let dir = root.path().join(name);
            instead_of_model(&dir).map(|e| e.to_string().replace(&root.path().display().to_string(), "ROOT"))
        };
        for file in [
            "runs/b/recipe.toml",
            "runs/a/recipe.toml",
            "runs/a/model/adapter_config.json",
            "runs/notes",
            "m/config.json",
        ] {
            write(file);
        }
        for (name, what, hint) in [
            ("runs", "expected a model, found a folder of runs: a, b\n", "name one of them: ROOT/runs/a"),
            ("runs/b", "this run has no model yet", "colrow train ROOT/runs/b/recipe.toml --resume"),
            (
                "runs/a/model",
                "expected a whole model, found an adapter",
                "colrow train ROOT/runs/a/recipe.toml --resume",
            ),
        ] {
            let told = told(name).unwrap();
            assert!(told.starts_with(what) && told.contains(hint), "{told}");
        }
        assert_eq!((told("m"), told("absent"), told("runs/a/model/none")), (None, None, None));
    }
}
