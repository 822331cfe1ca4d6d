//! Files of a hub over HTTP, from a server that may be slow, broken or hostile.
//!
//! Nothing that a server says is believed before it is checked: what becomes part of a path is a number in hexadecimal digits, a body
//! is no longer than it was announced, its SHA-256 is the announced one where there is one. A server that stops talking, or sends
//! its client in circles, is left. The token goes to the hub alone, wherever its answers lead.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest::{Context, SHA256};
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};

use super::failure::Failure;

/// An answer that leads to another address that leads to another …: the hub's own need two.
const MOST_REDIRECTS: usize = 5;
/// The longest body of which no length is announced; the hub announces all.
const MOST_UNANNOUNCED: u64 = 64 << 20;
/// What stands in an address as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until there is a connection.
    pub(super) connect: Duration,
    /// Until its answer begins, and between two pieces of a body.
    pub(super) silence: Duration,
    /// Bytes a body brings within such a time at the least.
    pub(super) least: u64,
}

impl Default for Patience {
    fn default() -> Self {
        // a line of 8 kbit/s would be fast enough
        Self { connect: Duration::from_secs(20), silence: Duration::from_secs(60), least: 60_000 }
    }
}

/// A hub.
pub(super) struct Client {
    endpoint: String,
    token: Option<String>,
    patience: Patience,
    agent: Agent,
}

/// What the hub says of a file, and its content, not yet read.
pub(super) struct Answer {
    /// The commit that the file is of.
    pub(super) commit: String,
    /// What equal contents have in common; the name of the content in the cache.
    pub(super) etag: String,
    /// Bytes; `None` if the server does not say.
    pub(super) size: Option<u64>,
    sha256: Option<String>,
    address: Uri,
    response: Response<ureq::Body>,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>, patience: Patience) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("colrow/", env!("CARGO_PKG_VERSION")))
            // a compressed body has another length
            .accept_encoding("identity")
            .http_status_as_error(false)
            // each is looked at before it is followed
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .build();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { endpoint, token, patience, agent: config.new_agent() }
    }

    /// Asks for a file of a repository; `revision` is a branch, tag or commit.
    pub(super) fn ask(&self, model: &str, revision: &str, file: &str) -> Result<Answer, Failure> {
        let [revision, file] = [revision, file].map(|part| utf8_percent_encode(part, PLAIN));
        let address = format!("{}/{model}/resolve/{revision}/{file}", self.endpoint);
        let address: Uri =
            address.parse().map_err(|e| Failure::Refused(format!("{address:?} is not an address: {e}")))?;
        let (said, response) = self.follow(&address, None)?;
        let refused = |what: String| Err(Failure::Refused(what));
        let Some(commit) = said.commit else { return refused("it does not say of which commit the file is".into()) };
        if !is_commit(&commit) {
            return refused(format!("expected the number of a commit, found {commit:?}"));
        }
        let Some(etag) = said.linked_etag.as_ref().or(said.etag.as_ref()).map(|etag| unquoted(etag)) else {
            return refused("it gives the file no ETag".into());
        };
        if !is_etag(etag) {
            return refused(format!("expected an ETag of hexadecimal digits, found {etag:?}"));
        }
        let sha256 = said.linked_etag.is_some() && etag.len() == 64;
        let sha256 = sha256.then(|| etag.to_ascii_lowercase());
        let size = match said.linked_size {
            Some(text) => match text.parse() {
                Ok(size) => Some(size),
                Err(_) => return refused(format!("expected a size in bytes, found {text:?}")),
            },
            None => response.body().content_length(),
        };
        Ok(Answer { commit, etag: etag.to_owned(), size, sha256, address, response })
    }

    /// Reads what was asked for into the file `partial`, which may hold the beginning. Where this fails and the beginning is of use
    /// to another try it is left there.
    pub(super) fn save(&self, answer: Answer, partial: &Path, arrived: &dyn Fn(u64)) -> Result<(), Failure> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(partial)?;
        let result = self.read_into(&mut file, answer, arrived);
        if matches!(&result, Err(e) if !matches!(e, Failure::Broken(_) | Failure::Unreachable(_))) {
            // a beginning that is wrong, or that filled the disk
            std::fs::remove_file(partial)?;
        }
        result
    }

    fn read_into(&self, file: &mut File, answer: Answer, arrived: &dyn Fn(u64)) -> Result<(), Failure> {
        let mut hash = Context::new(&SHA256);
        let mut done = 0;
        let mut response = answer.response;
        let had = file.metadata()?.len();
        // a beginning that nothing is checked against could be of anything
        if answer.sha256.is_some() && had > 0 && answer.size.is_some_and(|size| had < size) {
            let (_, rest) = self.follow(&answer.address, Some(had))?;
            let continues = |range: &str| range.starts_with(&format!("bytes {had}-"));
            if rest.status() == 206 && text(rest.headers(), CONTENT_RANGE.as_str()).is_some_and(|r| continues(&r)) {
                copy_hashed(&mut file.try_clone()?, &mut hash)?;
                (done, response) = (had, rest);
            } else if rest.status() == 200 {
                response = rest;
            }
        }
        if done == 0 {
            file.set_len(0)?;
        }
        file.seek(io::SeekFrom::End(0))?;
        let most = answer.size.unwrap_or(MOST_UNANNOUNCED);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        let (mut since, mut fresh) = (Instant::now(), 0);
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::Broken(e.to_string())),
            };
            done += n as u64;
            if done > most {
                return Err(Failure::Refused(format!("expected {most} bytes, found more")));
            }
            hash.update(&buffer[..n]);
            file.write_all(&buffer[..n])?;
            arrived(done);
            fresh += n as u64;
            if since.elapsed() > self.patience.silence {
                if fresh < self.patience.least {
                    let seconds = self.patience.silence.as_secs_f64();
                    return Err(Failure::Broken(format!("no more than {fresh} bytes came in {seconds} seconds")));
                }
                (since, fresh) = (Instant::now(), 0);
            }
        }
        if let Some(size) = answer.size.filter(|&size| size != done) {
            return Err(Failure::Broken(format!("{done} of {size} bytes came")));
        }
        let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(expected) = answer.sha256.filter(|expected| *expected != found) {
            return Err(Failure::Refused(format!("expected the SHA-256 {expected}, found {found}")));
        }
        file.sync_all()?;
        Ok(())
    }

    /// The first answer that leads nowhere else, and what was said on the way.
    fn follow(&self, address: &Uri, from: Option<u64>) -> Result<(Said, Response<ureq::Body>), Failure> {
        let mut address = address.clone();
        let mut said = Said::default();
        for _ in 0..=MOST_REDIRECTS {
            let at_hub = same_server(&address, &self.endpoint);
            let mut request = self.agent.get(&address);
            if let Some(token) = self.token.as_ref().filter(|_| at_hub) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call()?;
            if at_hub {
                said.learn(response.headers());
            }
            match response.status().as_u16() {
                200 => return Ok((said, response)),
                206 if from.is_some() => return Ok((said, response)),
                300..=399 => {}
                404 => return Err(Failure::Absent),
                401 | 403 => return Err(Failure::Forbidden),
                _ => return Err(Failure::Refused(format!("{address} answers {}", response.status()))),
            }
            let Some(to) = text(response.headers(), LOCATION.as_str()) else {
                return Err(Failure::Refused(format!("{address} answers {} without an address", response.status())));
            };
            let to = joined(&address, &to).ok_or_else(|| Failure::Refused(format!("{address} leads to {to:?}")))?;
            if address.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
                return Err(Failure::Refused(format!("{address} leads to {to}, which is not encrypted")));
            }
            address = to;
        }
        Err(Failure::Refused(format!("it leads on and on, at last to {address}")))
    }
}

/// What the hub says of a file in its own answers; where a file lies is another server's business.
#[derive(Default)]
struct Said {
    commit: Option<String>,
    etag: Option<String>,
    linked_etag: Option<String>,
    linked_size: Option<String>,
}

impl Said {
    fn learn(&mut self, headers: &HeaderMap) {
        let learn = |known: &mut Option<String>, name: &str| {
            if let Some(text) = text(headers, name) {
                *known = Some(text);
            }
        };
        learn(&mut self.commit, "X-Repo-Commit");
        learn(&mut self.etag, ETAG.as_str());
        learn(&mut self.linked_etag, "X-Linked-Etag");
        learn(&mut self.linked_size, "X-Linked-Size");
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn unquoted(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Whether this can be the number of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// As [`is_commit`]; some stores count the parts of a file behind a dash.
fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_hexdigit())
        && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

fn same_server(address: &Uri, endpoint: &str) -> bool {
    endpoint
        .parse::<Uri>()
        .is_ok_and(|endpoint| (endpoint.scheme(), endpoint.authority()) == (address.scheme(), address.authority()))
}

/// The address that `to` is, seen from `from`: whole, or without its scheme, its server or its folder.
fn joined(from: &Uri, to: &str) -> Option<Uri> {
    let to = to.trim();
    let (scheme, server) = (from.scheme_str()?, from.authority()?);
    let whole = if to.starts_with("http://") || to.starts_with("https://") {
        to.to_owned()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{server}{to}")
    } else if to.split(['/', '?', '#']).next()?.contains(':') {
        // another scheme
        return None;
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{server}{folder}/{to}")
    };
    whole.parse().ok()
}

/// Hashes a file from its beginning.
fn copy_hashed(file: &mut File, hash: &mut Context) -> io::Result<()> {
    file.rewind()?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(e: ureq::Error) -> Self {
        use ureq::Error::{BadUri, Http, LargeResponseHeader, Protocol};
        match e {
            BadUri(_) | Http(_) | Protocol(_) | LargeResponseHeader(..) => Self::Refused(e.to_string()),
            _ => Self::Unreachable(e.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Local(e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::sleep;

    use super::super::testing::{PATIENCE, Server, head, sha256};
    use super::*;

    const SAID: [(&str, &str); 2] = [("X-Repo-Commit", "c0ffee"), ("ETag", "\"abc\"")];

    /// Fetches a file from a server; the content, or why not. Never takes long.
    fn fetch(server: &Server) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        fetch_into(server, &dir.path().join("partial"))
    }

    fn fetch_into(server: &Server, partial: &Path) -> Result<Vec<u8>, String> {
        let client = Client::new(&server.address, Some("secret".into()), PATIENCE);
        let start = Instant::now();
        let answer = client.ask("org/name", "main", "file");
        let result = answer.and_then(|answer| client.save(answer, partial, &|_| {}));
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        result.map_err(|e| format!("{e:?}")).map(|()| fs::read(partial).unwrap())
    }

    #[track_caller]
    fn fails(server: &Server, expected: &str) {
        let e = fetch(server).unwrap_err();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }

    fn write(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) -> bool {
        stream.write_all(bytes.as_ref()).is_ok()
    }

    #[test]
    fn a_server_that_stands_still_is_left() {
        let hour = Duration::from_secs(3600);
        fails(&Server::new(move |_, _| sleep(hour)), "Unreachable");
        let half_a_head = move |_: &str, stream: &mut TcpStream| {
            write(stream, "HTTP/1.1 200 OK\r\nX-Rep");
            sleep(hour);
        };
        fails(&Server::new(half_a_head), "Unreachable");
        let half_a_body = move |_: &str, stream: &mut TcpStream| {
            write(stream, head(200, &SAID, 100) + "half");
            sleep(hour);
        };
        fails(&Server::new(half_a_body), "Broken");
    }

    #[test]
    fn a_server_that_drips_is_left() {
        let drip = |stream: &mut TcpStream| {
            while write(stream, "x") {
                sleep(Duration::from_millis(50));
            }
        };
        let in_head = move |_: &str, stream: &mut TcpStream| {
            write(stream, "HTTP/1.1 200 OK\r\nX-Long: ");
            drip(stream);
        };
        fails(&Server::new(in_head), "Unreachable");
        let in_body = move |_: &str, stream: &mut TcpStream| {
            write(stream, head(200, &SAID, 1 << 30));
            drip(stream);
        };
        fails(&Server::new(in_body), "bytes came in 0.7 seconds");
    }

    #[test]
    fn a_body_ends_where_it_was_announced_to_end() {
        let endless = |linked: Option<&'static str>| {
            Server::new(move |_, stream| {
                let size = linked.map_or(String::new(), |size| format!("X-Linked-Size: {size}\r\n"));
                let said = "X-Repo-Commit: c0ffee\r\nETag: abc\r\nTransfer-Encoding: chunked";
                write(stream, format!("HTTP/1.1 200 OK\r\n{size}{said}\r\n\r\n"));
                let chunk = [b"10000\r\n", &[b'x'; 1 << 16][..], b"\r\n"].concat();
                while write(stream, &chunk) {}
            })
        };
        fails(&endless(Some("1000")), "expected 1000 bytes, found more");
        fails(&endless(None), "expected 67108864 bytes, found more");
        let header = Server::new(|_, stream| {
            write(stream, "HTTP/1.1 200 OK\r\n");
            while write(stream, "X-More: and more\r\n") {}
        });
        fails(&header, "Refused");
        let short = Server::new(|_, stream| {
            write(stream, head(200, &SAID, 100) + "half");
        });
        fails(&short, "Broken");
        let other = |linked: &'static str| {
            Server::new(move |_, stream| {
                write(stream, head(200, &[&SAID[..], &[("X-Linked-Size", linked)]].concat(), 4) + "four");
            })
        };
        assert_eq!(fetch(&other("4")).unwrap(), b"four");
        fails(&other("5"), "4 of 5 bytes came");
        fails(&other("3"), "expected 3 bytes, found more");
    }

    #[test]
    fn circles_are_left() {
        let turns = AtomicUsize::new(0);
        let server = Server::new(move |_, stream| {
            let to = format!("/round/{}", turns.fetch_add(1, Ordering::Relaxed));
            write(stream, head(302, &[SAID[0], SAID[1], ("Location", &to)], 0));
        });
        fails(&server, "it leads on and on");
        assert_eq!(server.requests().len(), 1 + MOST_REDIRECTS);
        for to in ["file:///etc/passwd", "ftp://example/x", "http://", "javascript:0"] {
            let server = Server::new(move |_, stream| {
                write(stream, head(302, &[("Location", to)], 0));
            });
            fails(&server, "Refused");
        }
        let nowhere = Server::new(|_, stream| {
            write(stream, head(302, &[], 0));
        });
        fails(&nowhere, "without an address");
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let store = Server::new(|_, stream| {
            write(stream, head(200, &[("ETag", "\"store's own\"")], 4) + "four");
        });
        let to = format!("{}/bucket/x?signed=1", store.address);
        let hub = Server::new(move |request, stream| {
            if request.starts_with("GET /elsewhere ") {
                write(stream, head(302, &[SAID[0], SAID[1], ("Location", &to)], 3) + "gone");
            } else {
                write(stream, head(307, &[("Location", "/elsewhere")], 0));
            }
        });
        assert_eq!(fetch(&hub).unwrap(), b"four");
        assert_eq!(hub.requests().len(), 2);
        let authorised = |request: &String| request.to_ascii_lowercase().contains("authorization: bearer secret");
        assert!(hub.requests().iter().all(authorised), "{:?}", hub.requests());
        assert_eq!(store.requests().len(), 1);
        assert!(!store.requests()[0].contains("secret"), "{:?}", store.requests());
        assert!(store.requests()[0].starts_with("GET /bucket/x?signed=1 "));
    }

    #[test]
    fn addresses_are_joined() {
        let from: Uri = "https://hub:8443/a/b?c=d".parse().unwrap();
        for (to, expected) in [
            ("https://store/x", Some("https://store/x")),
            ("//store/x?y", Some("https://store/x?y")),
            ("/x", Some("https://hub:8443/x")),
            ("x", Some("https://hub:8443/a/x")),
            ("data:x", None),
        ] {
            assert_eq!(joined(&from, to).map(|uri| uri.to_string()).as_deref(), expected, "{to}");
        }
        let same = |address: &str| same_server(&address.parse().unwrap(), "https://Hub:8443");
        assert!(same("https://hub:8443/other"));
        for other in ["https://hub/", "http://hub:8443/", "https://hub:8443@evil/", "https://hub.evil:8443/"] {
            assert!(!same(other), "{other}");
        }
    }

    /// A hub with one large file that breaks off after `half` bytes when it is asked for the first time.
    fn breaks_off(content: &'static [u8], half: usize, announced: String) -> Server {
        let first = AtomicUsize::new(0);
        Server::new(move |request, stream| {
            let range = request.to_ascii_lowercase();
            let from =
                range.split_once("range: bytes=").map(|(_, rest)| rest[..rest.find('-').unwrap()].parse().unwrap());
            let etag = format!("\"{announced}\"");
            let said = [SAID[0], ("X-Linked-Etag", &*etag)];
            if first.fetch_add(1, Ordering::Relaxed) == 0 {
                write(stream, head(200, &said, content.len()));
                write(stream, &content[..half]);
            } else if let Some(from) = from {
                let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                let said = [said[0], said[1], ("Content-Range", &*range)];
                write(stream, head(206, &said, content.len() - from));
                write(stream, &content[from..]);
            } else {
                write(stream, head(200, &said, content.len()));
                // what is read of it only shows in the time
                write(stream, content);
            }
        })
    }

    #[test]
    fn what_broke_off_goes_on_and_is_checked_whole() {
        static CONTENT: [u8; 300_000] = [7; 300_000];
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join("partial");
        let server = breaks_off(&CONTENT, 100_000, sha256(&CONTENT));
        assert!(fetch_into(&server, &partial).unwrap_err().contains("Broken"));
        assert_eq!(fs::metadata(&partial).unwrap().len(), 100_000);
        assert!(fetch_into(&server, &partial).unwrap() == CONTENT);
        assert!(server.requests().last().unwrap().to_ascii_lowercase().contains("range: bytes=100000-"));
        // a beginning of something else is found out, and the next try starts anew
        let server = breaks_off(&CONTENT, 100_000, sha256(&CONTENT));
        fetch_into(&server, &partial).unwrap_err();
        fs::write(&partial, [8; 100_000]).unwrap();
        let e = fetch_into(&server, &partial).unwrap_err();
        assert!(e.contains("expected the SHA-256"), "{e}");
        assert!(!partial.exists());
        assert!(fetch_into(&server, &partial).unwrap() == CONTENT);
    }

    #[test]
    fn another_content_than_announced_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join("partial");
        let server = Server::new(|_, stream| {
            let etag = format!("\"{}\"", sha256(b"announced"));
            write(stream, head(200, &[SAID[0], ("X-Linked-Etag", &etag)], 4) + "four");
        });
        let e = fetch_into(&server, &partial).unwrap_err();
        assert!(e.contains("expected the SHA-256") && e.contains(&sha256(b"four")), "{e}");
        assert!(!partial.exists());
    }
}
