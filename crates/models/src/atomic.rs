//! Files and folders that are replaced whole or not at all.
//!
//! New content is written beside its target under a hidden temporary name, synced to the disk, and renamed. Whatever goes wrong on the
//! way (a full disk, a read-only folder, `kill -9`), the old content stays as it was.
//! One process writes a given target at a time; a second writer cannot corrupt it, but may fail.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use colrow_tensor::{Error, Result};

use crate::files::{expect_file, io_error};

/// Replaces the file `path` by what `write` writes, or leaves the old file as it was and returns the error.
pub fn write_file_atomic(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let (temporary, mut file) = begin_file(path)?;
    let _in_use = lock(&temporary);
    let written = (|| {
        write(&mut file)?;
        file.sync_all().map_err(|e| io_error("cannot write", &e, path))?;
        fs::rename(&temporary, path).map_err(|e| io_error("cannot replace", &e, path))
    })();
    if let Err(e) = written {
        // The first error is the one to report; a temporary file that stays is removed by the next write.
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    sync_folder(parent_of(path))
}

/// Checks that [`write_file_atomic`] can begin to write `path`, so that it is said before the work and not after. Changes nothing.
///
/// # Errors
/// A folder that is not there or cannot be written; something else than a file in its place.
pub fn check_file(path: &Path) -> Result<()> {
    let (temporary, _) = begin_file(path)?;
    fs::remove_file(&temporary).map_err(|e| io_error("cannot write", &e, path))
}

/// As [`check_file`] for [`replace_dir_atomic`].
///
/// # Errors
/// As there.
pub fn check_dir(target: &Path) -> Result<()> {
    let temporary = begin_dir(&real(target))?;
    fs::remove_dir(&temporary).map_err(|e| io_error("cannot create the folder", &e, target))
}

/// A new file beside `path`, to be renamed to it.
fn begin_file(path: &Path) -> Result<(PathBuf, File)> {
    if path.is_dir() {
        return Err(Error::new("expected a file to write, found a folder").at(path.display()));
    }
    // What is renamed over a link, a pipe or a device takes its place, for all who use it.
    if path.symlink_metadata().is_ok_and(|m| !m.is_file()) {
        return Err(Error::new("expected a file to write, found a link, a pipe or a device")
            .at(path.display())
            .hint("name the file itself"));
    }
    let temporary = temporary_beside(path)?;
    // Before anything that cleans up: a file that is there already is another writer's.
    let file = File::create_new(&temporary).map_err(|e| io_error("cannot write", &e, path))?;
    Ok((temporary, file))
}

/// Replaces the file `path` by one with this content, or leaves the old file as it was and returns the error.
pub fn write_atomic(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    write_file_atomic(path, |file| file.write_all(content.as_ref()).map_err(|e| io_error("cannot write", &e, path)))
}

/// Replaces the folder `target` by one that `fill` fills, or leaves the old folder as it was and returns the error.
///
/// `fill` gets the path of an empty folder beside `target`, on the same file system. On Linux the old and the new folder are exchanged in
/// one step, so that `target` is a whole folder at every moment. Where the file system cannot do that, the old folder is first
/// renamed to `.NAME.old`; a process killed between the two renames leaves it there, and [`recover_dir`] brings it back.
pub fn replace_dir_atomic(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = &real(target);
    let temporary = begin_dir(target)?;
    let _in_use = lock(&temporary);
    let filled = (|| {
        fill(&temporary)?;
        sync_tree(&temporary).map_err(|e| io_error("cannot write", &e, target))?;
        swap_in(&temporary, target).map_err(|e| io_error("cannot replace", &e, target))
    })();
    // After an exchange this is the old folder, after a failure the unfinished one.
    let cleaned = remove(&temporary);
    filled?;
    sync_folder(parent_of(target))?;
    cleaned.map_err(|e| io_error("the new folder is in place, but the old one cannot be removed", &e, &temporary))
}

/// A link to a folder stays a link: its folder is replaced, where that folder is.
fn real(target: &Path) -> PathBuf {
    fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf())
}

/// A new folder beside `target`, to be put in its place.
fn begin_dir(target: &Path) -> Result<PathBuf> {
    if target.exists() && !target.is_dir() {
        return Err(Error::new("expected a folder to write, found a file").at(target.display()));
    }
    recover_dir(target)?;
    let temporary = temporary_beside(target)?;
    fs::create_dir(&temporary).map_err(|e| io_error("cannot create the folder", &e, target))?;
    Ok(temporary)
}

/// Finishes what a [`replace_dir_atomic`] that was killed between two renames left: if `target` is gone and its old content is still
/// there under `.NAME.old`, renames that back. Call it before reading `target`.
pub fn recover_dir(target: &Path) -> Result<()> {
    let old = hidden_beside(target, "old")?;
    if !target.exists() && old.is_dir() {
        fs::rename(&old, target).map_err(|e| io_error("cannot bring back the previous folder", &e, target))?;
    }
    Ok(())
}

/// Removes the folder `target`, all at once as far as anybody can see: it is renamed first.
pub fn remove_dir_atomic(target: &Path) -> Result<()> {
    let temporary = temporary_beside(target)?;
    let removed = fs::rename(target, &temporary).and_then(|()| remove(&temporary));
    removed.map_err(|e| io_error("cannot remove", &e, target))
}

/// Removes what writers left in the folder `dir` when they were killed, and brings back what [`recover_dir`] does; only for targets whose
/// names are `ours`, and not what a living writer uses.
pub fn clean_dir(dir: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    let entries = || fs::read_dir(dir).map_err(|e| io_error("cannot list the folder", &e, dir));
    for entry in entries()?.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name();
        let target = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".old"));
        if let Some(target) = target.filter(|target| ours(target)) {
            recover_dir(&dir.join(target))?;
            // still there, it was not needed
            remove(&entry.path()).map_err(|e| io_error("cannot remove a replaced folder", &e, &entry.path()))?;
        }
    }
    remove_unfinished(entries()?, ours)
}

/// Removes the temporary files and folders of killed writers of targets whose names are `ours`.
fn remove_unfinished(entries: fs::ReadDir, ours: impl Fn(&str) -> bool) -> Result<()> {
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let target = name.to_str().and_then(written_to);
        if target.is_some_and(&ours) && !matches!(lock(&path), Err(TryLockError::WouldBlock)) {
            remove(&path).map_err(|e| io_error("cannot remove an unfinished write", &e, &path))?;
        }
    }
    Ok(())
}

/// `NAME` of a temporary `.NAME.PID.tmp`.
fn written_to(temporary: &str) -> Option<&str> {
    let (name, pid) = temporary.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    pid.parse::<u32>().ok().map(|_| name)
}

/// Puts the folder `new` in the place of `target`; afterwards `new` is either gone or the old folder.
fn swap_in(new: &Path, target: &Path) -> io::Result<()> {
    if !target.exists() {
        return fs::rename(new, target);
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    swap_in_two_steps(new, target)
}

fn swap_in_two_steps(new: &Path, target: &Path) -> io::Result<()> {
    let old = hidden_beside(target, "old").map_err(|e| io::Error::other(e.to_string()))?;
    remove(&old)?;
    fs::rename(target, &old)?;
    if let Err(e) = fs::rename(new, target) {
        fs::rename(&old, target)?;
        return Err(e);
    }
    remove(&old)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// `dir/.NAME.suffix` for `dir/NAME`.
fn hidden_beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new("expected a path that ends in a name").at(path.display()));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

/// A name beside `path` that nobody uses; removes what earlier writers of `path` left when they were killed.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let temporary = hidden_beside(path, &format!("{}.tmp", std::process::id()))?;
    let name = path.file_name().unwrap_or_default();
    let entries = fs::read_dir(parent_of(path)).map_err(|e| io_error("cannot write", &e, path))?;
    remove_unfinished(entries, |target| name == target)?;
    Ok(temporary)
}

/// Marks a temporary file or folder as in use until the result is dropped or the process ends, however it ends. A process number
/// would not do: it is of no use between containers, and a killed process may keep it for long.
pub fn lock(temporary: &Path) -> std::result::Result<File, TryLockError> {
    let there = fs::symlink_metadata(temporary).map_err(TryLockError::Error)?.file_type();
    if !there.is_dir() {
        // a pipe of that name would wait for its writer
        expect_file(there).map_err(TryLockError::Error)?;
    }
    let file = File::open(temporary).map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder_io(dir)
}

fn sync_folder(dir: &Path) -> Result<()> {
    sync_folder_io(dir).map_err(|e| io_error("cannot sync the folder", &e, dir))
}

/// Makes renames within `dir` durable; only Unix lets a program open a folder for that.
fn sync_folder_io(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn fill_with(text: &str) -> impl FnOnce(&Path) -> Result<()> {
        move |dir| Ok(fs::write(dir.join("a"), text)?)
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "two"] {
            write_file_atomic(&path, |f| Ok(f.write_all(text.as_bytes())?)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        let e = write_file_atomic(&path, |f| {
            f.write_all(b"half of the new")?;
            Err(Error::new("no more"))
        })
        .unwrap_err();
        assert_eq!(e.what(), "no more");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_missing_parent_or_a_folder_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let written = |path: &Path| write_file_atomic(path, |_| Ok(())).unwrap_err().to_string();
        let e = written(&dir.path().join("no/file"));
        assert!(e.contains("cannot write") && e.contains("no/file") && e.contains("does its folder exist"), "{e}");
        assert!(written(dir.path()).contains("found a folder"));
        // what is said after the work can be said before it
        for path in [dir.path().join("no/file"), dir.path().to_owned()] {
            assert_eq!(check_file(&path).unwrap_err().to_string(), written(&path));
        }
        fs::write(dir.path().join("old"), "old").unwrap();
        for name in ["old", "new"] {
            check_file(&dir.path().join(name)).unwrap();
        }
        check_dir(&dir.path().join("folder")).unwrap();
        assert!(check_dir(&dir.path().join("no/folder")).unwrap_err().to_string().contains("does its folder exist"));
        assert!(check_dir(&dir.path().join("old")).unwrap_err().what().contains("found a file"));
        assert_eq!(
            (names(dir.path()), fs::read(dir.path().join("old")).unwrap()),
            (vec!["old".into()], b"old".to_vec())
        );
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, socket) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("socket"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&link, &socket] {
            let error = write_atomic(path, "new").unwrap_err().to_string();
            assert!(error.contains("found a link, a pipe or a device") && error.contains("hint: "), "{error}");
        }
        assert!(link.is_symlink() && fs::read(&file).unwrap() == b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        replace_dir_atomic(&target, fill_with("one")).unwrap();
        fs::write(target.join("only in the first"), "").unwrap();
        replace_dir_atomic(&target, fill_with("two")).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "two");
        assert_eq!(names(&target), ["a"]);
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn a_failed_fill_leaves_the_old_folder_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        replace_dir_atomic(&target, fill_with("old")).unwrap();
        let e = replace_dir_atomic(&target, |tmp| {
            fs::write(tmp.join("a"), "half").unwrap();
            Err(Error::new("no more"))
        })
        .unwrap_err();
        assert_eq!(e.what(), "no more");
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "old");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn a_file_in_the_way_of_a_folder_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        fs::write(&target, "mine").unwrap();
        let e = replace_dir_atomic(&target, fill_with("new")).unwrap_err();
        assert!(e.what().contains("found a file"), "{e}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    }

    #[test]
    fn what_killed_writers_left_is_removed_but_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        for left in [".model.1.tmp", ".model.2.tmp"] {
            fs::create_dir(dir.path().join(left)).unwrap();
            fs::write(dir.path().join(left).join("big"), "").unwrap();
        }
        fs::write(dir.path().join(".model.mine.tmp"), "").unwrap();
        fs::write(dir.path().join(".models.1.tmp"), "").unwrap();
        let alive = lock(&dir.path().join(".model.2.tmp")).unwrap();
        replace_dir_atomic(&target, fill_with("new")).unwrap();
        assert_eq!(names(dir.path()), [".model.2.tmp", ".model.mine.tmp", ".models.1.tmp", "model"]);
        drop(alive);
        replace_dir_atomic(&target, fill_with("newer")).unwrap();
        assert_eq!(names(dir.path()), [".model.mine.tmp", ".models.1.tmp", "model"]);
    }

    #[test]
    fn a_folder_is_cleaned_of_what_killed_writers_of_ours_left() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [".step-1.7.tmp", ".step-2.old", ".step-3.old", "step-3", ".mine.7.tmp", ".mine.old"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join(".step-4.old"), "a file is not ours").unwrap();
        clean_dir(dir.path(), |name| name.starts_with("step-")).unwrap();
        assert_eq!(names(dir.path()), [".mine.7.tmp", ".mine.old", ".step-4.old", "step-2", "step-3"]);
        fs::write(dir.path().join("step-3/a"), "").unwrap();
        remove_dir_atomic(&dir.path().join("step-3")).unwrap();
        assert_eq!(names(dir.path()), [".mine.7.tmp", ".mine.old", ".step-4.old", "step-2"]);
    }

    #[test]
    fn without_exchange_the_old_folder_can_be_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        let (target, new) = (dir.path().join("model"), dir.path().join("new"));
        for (path, text) in [(&target, "old"), (&new, "new")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("a"), text).unwrap();
        }
        swap_in_two_steps(&new, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "new");
        assert_eq!(names(dir.path()), ["model"]);

        assert!(swap_in_two_steps(&dir.path().join("absent"), &target).is_err());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "new");

        fs::rename(&target, dir.path().join(".model.old")).unwrap();
        recover_dir(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "new");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_with_the_name_of_an_unfinished_write_is_removed_without_waiting() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        mknodat(CWD, dir.path().join(".file.1.tmp"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        write_file_atomic(&dir.path().join("file"), |_| Ok(())).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        replace_dir_atomic(&real, fill_with("old")).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        replace_dir_atomic(&link, fill_with("new")).unwrap();
        assert_eq!(fs::read_to_string(real.join("a")).unwrap(), "new");
        assert_eq!(names(dir.path()), ["link", "real"]);
    }
}
