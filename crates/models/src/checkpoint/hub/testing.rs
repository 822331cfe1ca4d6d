//! Little hubs and model folders on this machine, for tests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use colrow_tensor::Result;

use super::client::Patience;
use crate::checkpoint::names::CONFIG_FILE;

/// What a test waits for a server that stands still.
pub(super) const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), silence: Duration::from_millis(700), least: 1000 };

/// A server whose answers are a function of the request, each in a thread of its own.
pub(super) struct Server {
    /// Such as `http://127.0.0.1:4711`.
    pub(super) address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `answer` gets a request's lines and writes what it likes; then the connection is closed.
    pub(super) fn new(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, seen, answer) = (stream.unwrap(), seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    let request: String = lines.take_while(|line| !line.is_empty()).map(|line| line + "\n").collect();
                    seen.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                });
            }
        });
        Self { address, requests }
    }

    /// The requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// The beginning of an answer with a body of `length` bytes.
pub(super) fn head(status: u16, headers: &[(&str, &str)], length: usize) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} Word\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
}

/// A hub that has commit c0ffee of `org/name`; answers `status` where it has no file.
pub(super) fn serve_files(files: &'static [(&'static str, &'static str)], status: u16) -> Server {
    Server::new(move |request, stream| {
        let wanted =
            |name: &str| ["main", "c0ffee"].iter().any(|r| request.contains(&format!("/org/name/resolve/{r}/{name} ")));
        let answer = match files.iter().position(|(name, _)| wanted(name)) {
            Some(i) => {
                let content = files[i].1;
                let headers = [("ETag", &*format!("\"{}\"", sha256(content.as_bytes()))), ("X-Repo-Commit", "c0ffee")];
                head(200, &headers, content.len()) + content
            }
            None => head(status, &[], 0),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    })
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that the error has all of these texts.
#[track_caller]
pub(super) fn fails<T>(result: Result<T>, expected: &[&str]) {
    let e = result.err().expect("an error").to_string();
    for expected in expected {
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }
}

/// Of a model of the smallest size.
pub(super) const CONFIG: &str =
    r#"{"hidden_size":2,"num_hidden_layers":1,"num_attention_heads":1,"intermediate_size":2,"vocab_size":3}"#;
/// Of a family that is not known here.
pub(super) const GPT2: &str = r#"{"model_type":"gpt2"}"#;

/// A folder of files with these texts.
pub(super) fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A folder of files of these names.
pub(super) fn folder(files: &[&str]) -> tempfile::TempDir {
    folder_of(&files.iter().map(|&name| (name, if name == CONFIG_FILE { CONFIG } else { "{}" })).collect::<Vec<_>>())
}
