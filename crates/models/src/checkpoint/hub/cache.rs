//! The folder in which `transformers`, too, keeps what it fetches.
//!
//! A repository is a folder `models--OWNER--NAME`: `blobs/` holds contents under their ETags, `snapshots/COMMIT/` the files of a commit as
//! links to them, `refs/REVISION` the commit of a branch or tag. While a content is fetched it is `blobs/ETAG.incomplete`, and
//! `.locks/` beside the repositories keeps others from fetching it too.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use colrow_tensor::Result;

use super::client::is_commit;
use crate::atomic::write_atomic;
use crate::files;

/// More than the number of a commit needs.
const MOST_REF_BYTES: u64 = 4096;

/// One repository in the cache.
pub(super) struct Cached {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cached {
    /// `model` is `name` or `owner/name`, `cache` the folder with all repositories.
    pub(super) fn new(cache: &Path, model: &str) -> Self {
        let name = format!("models--{}", model.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The commit that a branch or tag was when it was fetched, or the commit itself.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let named = files::read(&self.folder.join("refs").join(revision), MOST_REF_BYTES).ok();
        let named = named.and_then(|text| Some(String::from_utf8(text).ok()?.trim().to_owned()));
        named.or_else(|| Some(revision.to_owned())).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit a branch or tag is.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join(revision);
        if revision == commit || files::read(&path, MOST_REF_BYTES).is_ok_and(|known| known == commit.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        write_atomic(&path, commit)
    }

    /// The folder with the files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where a content is, once it is whole.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits until no other process fetches this content; `waiting` is called before, if it has to. None does until the result is dropped.
    pub(super) fn lock(&self, etag: &str, waiting: &dyn Fn()) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.folder.join("blobs"))?;
        let file = files::append_own(&self.locks.join(format!("{etag}.lock")))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()?;
            }
            // a file system without locks is used without them
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(file)
    }

    /// Makes a content a file of a commit.
    pub(super) fn add(&self, commit: &str, name: &str, etag: &str) -> io::Result<PathBuf> {
        let folder = self.snapshot(commit);
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        #[cfg(unix)]
        {
            let blob = Path::new("../../blobs").join(etag);
            if fs::read_link(&path).is_ok_and(|there| there == blob) {
                return Ok(path);
            }
            // renamed into its place: another process may read what is there
            let new = folder.join(format!(".{name}.{etag}.new"));
            fs::remove_file(&new).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
            std::os::unix::fs::symlink(blob, &new)?;
            fs::rename(&new, &path)?;
        }
        #[cfg(not(unix))]
        fs::rename(self.blob(etag), &path)?;
        Ok(path)
    }
}
