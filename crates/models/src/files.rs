//! What every reader and writer of files shares.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use colrow_tensor::{Error, Result};

use crate::foreign::foreign;

/// More than any `config.json` or shard index needs; a larger file is not one.
pub const MOST_JSON_BYTES: u64 = 64 << 20;

/// Says what failed, where, and for the common causes what to do.
pub fn io_error(what: &str, e: &io::Error, path: &Path) -> Error {
    let error = Error::new(format!("{what}: {e}")).at(path.display());
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            error.hint("free some space, or write to another disk; nothing that was there before has been changed")
        }
        ErrorKind::FileTooLarge => {
            error.hint("the limit on the size of a file is reached: raise it (ulimit -f), or write to another disk")
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            error.hint("may this user read and write there? otherwise choose another folder")
        }
        ErrorKind::NotFound => error.hint("does its folder exist?"),
        _ => error,
    }
}

/// Opens a file that a user named or brought, for reading. All such files are opened here.
///
/// # Errors
/// As [`File::open`]; and anything but a file or a link to one: a pipe may wait for its writer for ever, a device may have no end.
pub fn open(path: &Path) -> io::Result<File> {
    expect_file(fs::metadata(path)?.file_type())?;
    File::open(path)
}

/// What `<(…)` of a shell is too.
const PIPE: &str = "a pipe: write what comes out of it to a file first, or give data to eval and predict by --data -";

pub(crate) fn expect_file(kind: fs::FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    #[cfg(unix)]
    let special = {
        use std::os::unix::fs::FileTypeExt;
        [
            (kind.is_fifo(), PIPE),
            (kind.is_socket(), "a socket"),
            (kind.is_char_device() || kind.is_block_device(), "a device"),
        ]
    };
    #[cfg(not(unix))]
    let special = [];
    let kinds = special.into_iter().chain([(kind.is_dir(), "a folder"), (kind.is_symlink(), "a link")]);
    let found = kinds.into_iter().find_map(|(is, words)| is.then_some(words)).unwrap_or("something else");
    Err(io::Error::new(ErrorKind::InvalidInput, format!("expected a file, found {found}")))
}

/// The whole of a file that a user named or brought, of at most `most` bytes.
///
/// # Errors
/// As [`open`]; a larger file.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    // its size is asked first, so that a file of terabytes is refused at once
    if file.metadata()?.len() <= most {
        file.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= most {
            return Ok(bytes);
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, format!("it has more than {most} bytes, more than any such file needs")))
}

/// Opens one of our own files, an empty one if it is not there, to write at its end. A link in its place is an error: it could lead to
/// anybody's file.
///
/// # Errors
/// As [`OpenOptions::open`].
pub fn append_own(path: &Path) -> io::Result<File> {
    if let Ok(there) = fs::symlink_metadata(path) {
        expect_file(there.file_type())?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    }
    options.open(path)
}

/// Reads a whole JSON file, whose parser then says what is wrong in it.
pub(crate) fn read_json_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = read(path, MOST_JSON_BYTES).map_err(|e| io_error("cannot read", &e, path))?;
    match foreign(&bytes) {
        Some(other) => Err(other.instead_of("a JSON file").at(path.display())),
        None => Ok(bytes),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert!(read(&path, 3).unwrap_err().to_string().contains("more than 3 bytes"));
        assert_eq!(read(&dir.path().join("absent"), 4).unwrap_err().kind(), ErrorKind::NotFound);
        // a file of holes, far larger than the memory
        File::create(&path).unwrap().set_len(1 << 42).unwrap();
        assert!(read(&path, 1 << 20).unwrap_err().to_string().contains("more than 1048576 bytes"));
        assert!(read(dir.path(), 4).unwrap_err().to_string().contains("expected a file, found a folder"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pipes_sockets_and_devices_are_refused_without_waiting() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, target) in [("zero", "/dev/zero"), ("linked", "pipe")] {
            std::os::unix::fs::symlink(target, at(name)).unwrap();
        }
        for (name, what) in [("pipe", PIPE), ("linked", PIPE), ("socket", "a socket"), ("zero", "a device")] {
            let expected = format!("expected a file, found {what}");
            assert_eq!(open(&at(name)).unwrap_err().to_string(), expected, "{name}");
            assert_eq!(read(&at(name), 10).unwrap_err().to_string(), expected, "{name}");
            assert!(append_own(&at(name)).is_err(), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn our_own_files_are_not_opened_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, link, dangling) = (dir.path().join("mine"), dir.path().join("link"), dir.path().join("dangling"));
        fs::write(&mine, "precious").unwrap();
        std::os::unix::fs::symlink("mine", &link).unwrap();
        std::os::unix::fs::symlink("absent", &dangling).unwrap();
        for path in [&link, &dangling] {
            let e = append_own(path).unwrap_err();
            assert!(e.to_string().contains("found a link"), "{e}");
        }
        assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
        assert!(!dir.path().join("absent").exists());
        append_own(&dir.path().join("new")).unwrap();
    }
}
