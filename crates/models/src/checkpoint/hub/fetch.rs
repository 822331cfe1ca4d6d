//! Repositories of the hub: their files from the cache, or fetched into it, all of one commit.

use std::path::{Path, PathBuf};
use std::{env, fs};

use colrow_tensor::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::cache::Cached;
use super::client::{Answer, Client, Patience, is_commit};
use super::failure::Failure;
use super::{Needs, PASS_A_FOLDER};
use crate::checkpoint::index::parse_index;
use crate::checkpoint::names::{CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE, USAGE_FILE, WEIGHTS_FILE};
use crate::config::Config;
use crate::family::Family;
use crate::files::{self, read_json_bytes};

/// Where models are, unless `HF_ENDPOINT` says where.
const ENDPOINT: &str = "https://huggingface.co";
/// No file but weights is larger.
const MOST_BYTES: u64 = 1 << 30;

/// Where repositories and their copies are.
pub(super) struct Hub<'f> {
    families: &'f [&'static Family],
    cache: PathBuf,
    client: Client,
    offline: bool,
    progress: bool,
}

impl<'f> Hub<'f> {
    /// As the environment says.
    pub(super) fn from_env(families: &'f [&'static Family]) -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let cache = set("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| in_home("hub"))
            .ok_or_else(|| Error::new("no home folder to cache models in").hint("set HF_HOME to a folder"))?;
        // where logging in to the hub leaves it
        let login =
            || files::read(&set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| in_home("token"))?, 1 << 16).ok();
        let token = set("HF_TOKEN").or_else(|| String::from_utf8(login()?).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str()));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            families,
            cache,
            client: Client::new(&endpoint, token, Patience::default()),
            offline,
            progress: true,
        })
    }

    /// The folder of a repository's files in the cache, fetched where they are not there.
    pub(super) fn resolve(&self, model: &str, revision: &str, needs: Needs) -> Result<PathBuf> {
        if let Some(folder) = self.cached(model, revision, needs)? {
            return Ok(folder);
        }
        if self.offline {
            return Err(Error::new(format!(
                "{model} (revision {revision}) is not in the cache, and HF_HUB_OFFLINE is set"
            ))
            .at(self.cache.display())
            .hint(PASS_A_FOLDER));
        }
        self.fetch(model, revision, needs)
    }

    /// The folder of a revision of which all files that are needed are in the cache.
    fn cached(&self, model: &str, revision: &str, needs: Needs) -> Result<Option<PathBuf>> {
        let repository = Cached::new(&self.cache, model);
        let Some(commit) = repository.commit(revision) else { return Ok(None) };
        let folder = repository.snapshot(&commit);
        let has = |name: &str| folder.join(name).exists();
        if !has(CONFIG_FILE) {
            return Ok(None);
        }
        Config::open_of(self.families, &folder).map_err(|e| e.at(model))?;
        let shards = || {
            let index = parse_index(&read_json_bytes(&folder.join(INDEX_FILE)).ok()?).ok()?;
            Some(index.values().all(|shard| has(shard)))
        };
        let weights = needs != Needs::Weights || has(WEIGHTS_FILE) || shards() == Some(true);
        Ok((has(TOKENIZER_FILE) && weights).then_some(folder))
    }

    fn fetch(&self, model: &str, revision: &str, needs: Needs) -> Result<PathBuf> {
        let repository = Cached::new(&self.cache, model);
        let get = |revision: &str, name: &str| self.get(&repository, model, revision, name);
        let needed = |commit: &str, name: &str| get(commit, name).map_err(|e| e.explain(model, revision, name));

        let config = needed(revision, CONFIG_FILE)?;
        let folder = config.parent().unwrap_or(Path::new(".")).to_path_buf();
        let config = Config::open_of(self.families, &folder).map_err(|e| e.at(model))?;
        // The branch may move on while the rest is fetched; all files have to be of one commit.
        let commit = &folder.file_name().unwrap_or_default().to_string_lossy();
        for name in config.family().tokenizer_files.iter().copied().chain([USAGE_FILE]) {
            match get(commit, name) {
                Ok(_) | Err(Failure::Absent) => {}
                Err(e) => return Err(e.explain(model, revision, name)),
            }
        }
        needed(commit, TOKENIZER_FILE)?;
        if needs != Needs::Weights {
            return Ok(folder);
        }
        match get(commit, WEIGHTS_FILE) {
            Ok(_) => {}
            Err(Failure::Absent) => {
                let index = match get(commit, INDEX_FILE) {
                    Err(Failure::Absent) => return Err(Failure::Absent.explain(model, revision, WEIGHTS_FILE)),
                    index => index.map_err(|e| e.explain(model, revision, INDEX_FILE))?,
                };
                let map = parse_index(&read_json_bytes(&index)?).map_err(|e| e.at(index.display()))?;
                let shards: std::collections::BTreeSet<_> = map.into_values().collect();
                for shard in shards {
                    needed(commit, &shard)?;
                }
            }
            Err(e) => return Err(e.explain(model, revision, WEIGHTS_FILE)),
        }
        Ok(folder)
    }

    /// A file of a revision in the cache, fetched if it is not there.
    fn get(&self, repository: &Cached, model: &str, revision: &str, name: &str) -> Result<PathBuf, Failure> {
        let known = repository.commit(revision).map(|commit| repository.snapshot(&commit).join(name));
        if let Some(path) = known.filter(|path| path.exists()) {
            return Ok(path);
        }
        let answer = self.client.ask(model, revision, name)?;
        let (commit, etag) = (answer.commit.clone(), answer.etag.clone());
        if is_commit(revision) && commit.len() == revision.len() && commit != revision {
            return Err(Failure::Refused(format!("asked for a file of commit {revision}, it gives one of {commit}")));
        }
        if !name.ends_with(".safetensors") && answer.size.is_some_and(|size| size > MOST_BYTES) {
            return Err(Failure::Refused(format!("expected at most {MOST_BYTES} bytes, it announces more")));
        }
        let waiting = self.bar("{msg}");
        let lock =
            repository.lock(&etag, &|| waiting.set_message(format!("another process is fetching {name} of {model}")));
        waiting.finish_and_clear();
        let _lock = lock?;
        let blob = repository.blob(&etag);
        let whole = |found: fs::Metadata| found.is_file() && answer.size.is_none_or(|size| size == found.len());
        if !fs::metadata(&blob).is_ok_and(whole) {
            let partial = blob.with_extension("incomplete");
            self.save(answer, &partial, name)?;
            fs::rename(&partial, &blob)?;
        }
        repository.remember(revision, &commit).map_err(|e| Failure::Local(e.to_string()))?;
        Ok(repository.add(&commit, name, &etag)?)
    }

    fn save(&self, answer: Answer, partial: &Path, name: &str) -> Result<(), Failure> {
        let bar = self.bar("{prefix} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
        bar.set_length(answer.size.unwrap_or(0));
        bar.set_prefix(name.to_owned());
        let result = self.client.save(answer, partial, &|done| bar.set_position(done));
        bar.finish_and_clear();
        result
    }

    /// Shows on a terminal what is waited for.
    fn bar(&self, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        if self.progress { ProgressBar::new(0).with_style(style) } else { ProgressBar::hidden() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::super::testing::{CONFIG, GPT2, PATIENCE, Server, fails, head, serve_files as serve};
    use super::*;
    use crate::families::FAMILIES;

    fn hub(cache: &Path, endpoint: &str, offline: bool) -> Hub<'static> {
        let client = Client::new(endpoint, None, PATIENCE);
        Hub { families: FAMILIES, cache: cache.to_path_buf(), client, offline, progress: false }
    }

    #[test]
    fn another_family_is_named_before_anything_else_is_fetched() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(&[(CONFIG_FILE, GPT2), (TOKENIZER_FILE, "{}"), (WEIGHTS_FILE, "weights")], 404);
        for offline in [false, true] {
            let hub = hub(cache.path(), &server.address, offline);
            fails(hub.resolve("org/name", "main", Needs::Weights), &["another family", "in org/name"]);
        }
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn a_plan_fetches_no_weights() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(&[(CONFIG_FILE, CONFIG), (TOKENIZER_FILE, "{}"), (WEIGHTS_FILE, "weights")], 404);
        let resolve = |offline, needs| hub(cache.path(), &server.address, offline).resolve("org/name", "main", needs);
        let folder = resolve(false, Needs::ConfigAndTokenizer).unwrap();
        assert!(folder.join(TOKENIZER_FILE).exists() && !folder.join(WEIGHTS_FILE).exists());
        assert_eq!(resolve(true, Needs::ConfigAndTokenizer).unwrap(), folder);
        fails(resolve(true, Needs::Weights), &["not in the cache"]);
        assert_eq!(resolve(false, Needs::Weights).unwrap(), folder);
        assert!(folder.join(WEIGHTS_FILE).exists());
    }

    #[test]
    fn a_repository_is_fetched_once() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(
            &[(CONFIG_FILE, CONFIG), (TOKENIZER_FILE, "{\"t\":1}"), ("vocab.txt", "a"), (WEIGHTS_FILE, "weights")],
            404,
        );
        fails(
            hub(cache.path(), &server.address, true).resolve("org/name", "main", Needs::Weights),
            &["not in the cache", "HF_HUB_OFFLINE"],
        );
        let folder = hub(cache.path(), &server.address, false).resolve("org/name", "main", Needs::Weights).unwrap();
        assert_eq!(fs::read_to_string(folder.join(WEIGHTS_FILE)).unwrap(), "weights");
        assert_eq!(fs::read_to_string(folder.join(TOKENIZER_FILE)).unwrap(), "{\"t\":1}");
        assert!(folder.join("vocab.txt").exists() && !folder.join("added_tokens.json").exists());
        let before = server.requests().len();
        for revision in ["main", "c0ffee"] {
            assert_eq!(
                hub(cache.path(), &server.address, true).resolve("org/name", revision, Needs::Weights).unwrap(),
                folder
            );
            assert_eq!(
                hub(cache.path(), &server.address, false).resolve("org/name", revision, Needs::Weights).unwrap(),
                folder
            );
        }
        assert_eq!(server.requests().len(), before, "a cached revision needs no network");
    }

    #[test]
    fn shards_are_fetched_and_none_may_be_absent() {
        const INDEX: &str = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
        let cache = tempfile::tempdir().unwrap();
        let server =
            serve(&[(CONFIG_FILE, CONFIG), (TOKENIZER_FILE, "{}"), (INDEX_FILE, INDEX), ("1.safetensors", "1")], 404);
        fails(
            hub(cache.path(), &server.address, false).resolve("org/name", "main", Needs::Weights),
            &["org/name has no 2.safetensors"],
        );
        let server = serve(&[("2.safetensors", "2")], 404);
        let folder = hub(cache.path(), &server.address, false).resolve("org/name", "main", Needs::Weights);
        // The first answers are cached, so only the rest is asked for.
        let folder = folder.unwrap();
        assert_eq!(fs::read_to_string(folder.join("2.safetensors")).unwrap(), "2");
    }

    #[test]
    fn what_the_hub_lacks_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let try_with = |files, status| {
            hub(cache.path(), &serve(files, status).address, false).resolve("org/name", "main", Needs::Weights)
        };
        fails(try_with(&[], 404), &["no folder \"org/name\", and no hub repository", "pass a local folder"]);
        fails(try_with(&[], 401), &["does not exist or is not public", "HF_TOKEN"]);
        fails(try_with(&[], 503), &["the hub did not give config.json of org/name", "503"]);
        fails(try_with(&[(CONFIG_FILE, CONFIG)], 404), &["has no tokenizer.json in revision main"]);
        fails(try_with(&[(TOKENIZER_FILE, "{}")], 404), &["has no model.safetensors", "only safetensors are read"]);
    }

    #[test]
    fn a_hub_that_cannot_be_reached_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gone = hub(cache.path(), &format!("http://{address}"), false);
        fails(
            gone.resolve("org/name", "main", Needs::Weights),
            &["no folder \"org/name\", and the hub cannot be reached", "hint: pass a local folder"],
        );
        let nonsense = hub(cache.path(), "not an address", false);
        assert!(nonsense.resolve("org/name", "main", Needs::Weights).is_err());
    }

    /// Every file and folder in `dir`.
    fn everything(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { everything(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn what_a_server_says_never_leads_out_of_the_cache() {
        for (header, value) in [
            ("X-Repo-Commit", "../../../../escaped"),
            ("X-Repo-Commit", "/tmp/escaped"),
            ("X-Repo-Commit", "c0ffee/../../escaped"),
            ("X-Repo-Commit", ""),
            ("ETag", "\"../../../../escaped\""),
            ("ETag", "\"\""),
            ("ETag", "W/\"abc.lock\""),
            ("X-Linked-Etag", "\"/tmp/escaped\""),
            ("X-Linked-Etag", "..\\escaped"),
            ("X-Linked-Size", "-1"),
            ("X-Linked-Size", "many"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let cache = dir.path().join("a/b/c/d/cache");
            let server = Server::new(move |_, stream| {
                let mut headers = vec![("X-Repo-Commit", "c0ffee"), ("ETag", "\"abc\"")];
                headers.retain(|(name, _)| *name != header);
                headers.push((header, value));
                let _ = stream.write_all(head(200, &headers, CONFIG.len()).as_bytes());
                let _ = stream.write_all(CONFIG.as_bytes());
            });
            fails(
                hub(&cache, &server.address, false).resolve("org/name", "main", Needs::Weights),
                &["the hub did not give config.json of org/name"],
            );
            assert!(everything(dir.path()).is_empty(), "{header}: {value}: {:?}", everything(dir.path()));
        }
    }

    #[test]
    fn a_hostile_name_in_the_cache_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let refs = dir.path().join("cache/models--org--name/refs");
        fs::create_dir_all(&refs).unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        for name in [CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE] {
            fs::write(dir.path().join("elsewhere").join(name), CONFIG).unwrap();
        }
        fs::write(refs.join("main"), "../../../elsewhere").unwrap();
        let hub = hub(&dir.path().join("cache"), "http://127.0.0.1:1", true);
        fails(hub.resolve("org/name", "main", Needs::Weights), &["not in the cache"]);
    }

    #[test]
    fn a_commit_that_changes_on_the_way_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::new(|request, stream| {
            let commit = if request.contains(CONFIG_FILE) { "c0ffee" } else { "decade" };
            let headers = [("X-Repo-Commit", commit), ("ETag", "\"abc\"")];
            let _ = stream.write_all((head(200, &headers, CONFIG.len()) + CONFIG).as_bytes());
        });
        fails(
            hub(cache.path(), &server.address, false).resolve("org/name", "main", Needs::Weights),
            &["asked for a file of commit c0ffee, it gives one of decade"],
        );
    }

    #[test]
    fn the_cache_is_laid_out_as_for_transformers() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(&[(CONFIG_FILE, CONFIG), (TOKENIZER_FILE, "{}"), (WEIGHTS_FILE, "weights")], 404);
        hub(cache.path(), &server.address, false).resolve("org/name", "main", Needs::Weights).unwrap();
        let repository = cache.path().join("models--org--name");
        assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), "c0ffee");
        assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count(), 3);
        #[cfg(unix)]
        for name in [CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE] {
            let link = fs::read_link(repository.join("snapshots/c0ffee").join(name)).unwrap();
            assert!(link.starts_with("../../blobs"), "{link:?}");
        }
    }

    #[test]
    fn processes_that_fetch_at_once_do_not_clash() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(&[(CONFIG_FILE, CONFIG), (TOKENIZER_FILE, "{}"), (WEIGHTS_FILE, "weights")], 404);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let hub = hub(cache.path(), &server.address, false);
                    let folder = hub.resolve("org/name", "main", Needs::Weights).unwrap();
                    assert_eq!(fs::read_to_string(folder.join(WEIGHTS_FILE)).unwrap(), "weights");
                });
            }
        });
    }
}
