//! Little hubs on this machine, for tests.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::Patience;

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
