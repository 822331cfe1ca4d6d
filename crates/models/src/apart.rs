//! What is written never replaces what was read.
//!
//! Paths are compared as the file system sees them: through links, `.` and `..`, also where they end in what is not there yet.

use std::fs;
use std::path::{Component, Path, PathBuf};

use colrow_tensor::{Error, Result};

/// Refuses a folder that is to be written if it is the folder `kept`, lies in it or holds it; `what` that folder is, as in "the model".
///
/// # Errors
/// One that names both.
pub fn check_folder(out: &Path, what: &str, kept: &Path) -> Result<()> {
    let (a, b) = (seen(out), seen(kept));
    let how = if a == b {
        "is the folder of"
    } else if a.starts_with(&b) {
        "lies in the folder of"
    } else if b.starts_with(&a) {
        "holds the folder of"
    } else {
        return Ok(());
    };
    Err(Error::new(format!("the folder to write {how} {what}, {}", kept.display()))
        .at(out.display())
        .hint("choose a folder that has nothing to do with it"))
}

/// Refuses a file that is to be written if it is one of those that are read, or lies in one of these folders.
///
/// # Errors
/// One that names both.
pub fn check_file<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let file = seen(out);
    match inputs.into_iter().find(|input| file.starts_with(seen(input))) {
        None => Ok(()),
        Some(input) if input.is_dir() => {
            Err(Error::usage(format!("the file to write lies in a folder that is read, {}", input.display()))
                .at(out.display())
                .hint("choose a file outside of it"))
        }
        Some(_) => {
            Err(Error::usage("the file to write is one that is read").at(out.display()).hint("choose another file"))
        }
    }
}

/// A path without links, `.` and `..`.
pub fn seen(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut seen = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                seen.pop();
            }
            part => {
                seen.push(part);
                // part by part, so that `..` is that of the folder which a link leads to
                seen = fs::canonicalize(&seen).unwrap_or(seen);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_apart_or_refused_with_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("models/base")).unwrap();
        fs::create_dir_all(at("runs")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(at("models/base"), at("runs/linked")).unwrap();
        let base = at("models/base");
        for (out, how) in [
            ("models/base", "is the folder of"),
            ("models/base/.", "is the folder of"),
            ("runs/../models/base", "is the folder of"),
            ("models/base/run/deep", "lies in the folder of"),
            ("models", "holds the folder of"),
            (".", "holds the folder of"),
            #[cfg(unix)]
            ("runs/linked", "is the folder of"),
            #[cfg(unix)]
            ("runs/linked/new", "lies in the folder of"),
            #[cfg(unix)]
            ("runs/linked/..", "holds the folder of"),
        ] {
            let e = check_folder(&at(out), "the model", &base).unwrap_err().to_string();
            assert!(e.contains(&format!("{how} the model, ")) && e.contains(&*base.to_string_lossy()), "{out}: {e}");
            assert!(e.contains(&format!("in {}", at(out).display())), "{out}: {e}");
        }
        for out in ["runs/new", "runs", "models/base2", "models/bas", "absent/../runs/a"] {
            check_folder(&at(out), "the model", &base).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("model")).unwrap();
        fs::write(at("data.tsv"), "").unwrap();
        let (data, model) = (at("data.tsv"), at("model"));
        let check = |out: &str| check_file(&at(out), [&*data, &*model]).map_err(|e| e.to_string());
        assert!(check("model/../data.tsv").unwrap_err().contains("is one that is read"));
        assert!(check("model/config.json").unwrap_err().contains("lies in a folder that is read"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("data.tsv", at("link")).unwrap();
            assert!(check("link").unwrap_err().contains("is one that is read"));
        }
        for out in ["data.tsv.out", "predictions", "models"] {
            check(out).unwrap();
        }
    }
}
